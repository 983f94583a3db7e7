//! Chromium without a window, controlled through chromedriver (WebDriver).

use super::{Directory, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Time limit of a command of the browser.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _directory: Directory,
}

impl Browser {
    /// Starts a browser with a window of this size in pixels.
    pub(crate) fn start((width, height): (u32, u32)) -> Self {
        let directory = Directory::new();
        let log = directory.file("chromedriver.log");
        let output = fs::File::create(&log).unwrap();
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", directory.file(""))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let port = wait_until("chromedriver to start", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.split_once("successfully on port ")?.1.split('.').next()?.trim().parse().ok()
        });
        let mut browser = Self { driver, port, session: String::new(), _directory: directory };
        let profile = browser._directory.file("profile").display().to_string();
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--user-data-dir={profile}"),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let response = browser.call("POST", "/session", &wanted);
        browser.session = response["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// Sends a command of WebDriver, and returns its value.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "{path}: chromedriver closed the connection");
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(value["value"]["error"].is_null(), "{path}: {value}");
        value["value"].clone()
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({"url": url}));
    }

    /// Runs JavaScript in the page, and returns what it returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until JavaScript returns true.
    pub(crate) fn expect(&self, what: &str, condition: &str) {
        let script = format!("return Boolean({condition})");
        wait_until(what, || (self.run(&script) == json!(true)).then_some(()));
    }

    /// Changes the size of the window.
    pub(crate) fn resize(&self, (width, height): (u32, u32)) {
        self.command("POST", "/window/rect", &json!({"width": width, "height": height}));
    }

    /// Returns the messages of the console that are warnings or errors.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        let complaints = entries.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        complaints.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Writes a picture of the window.
    pub(crate) fn picture(&self, file: &Path) {
        let encoded = self.command("GET", "/screenshot", &Value::Null);
        let mut decoder =
            Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = decoder.stdin.take().unwrap();
        let text = encoded.as_str().unwrap().to_owned();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
        let output = decoder.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.stdout.starts_with(b"\x89PNG"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, output.stdout).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of the session ends the browser. A test that failed has no time for another failure.
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = write!(stream, "DELETE /session/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.session);
            let _ = stream.read(&mut [0; 1024]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
