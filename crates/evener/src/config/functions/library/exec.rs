//! `exec("/usr/bin/program", { "argument" }, { stdin = "...", timeout = "1s" })`.

use super::{Outcome, RECEIVED_BYTES_MAX, bytes_to_send, failure, operate, running, timeout};
use crate::config::functions::bounds::fail;
use mlua::{Function, IntoLua, Lua, Table};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Maximum number of arguments.
const ARGUMENTS_MAX: usize = 1000;
/// Maximum length of all arguments.
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

struct Ran {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

/// Kills the process and its children when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

pub(super) fn function(lua: &Lua) -> mlua::Result<Function> {
    lua.create_async_function(
        |lua, (program, arguments, options): (String, Option<Table>, Option<Table>)| {
            let allowed = running(&lua, "exec").and_then(|runtime| {
                if runtime.allowed.contains(&program) {
                    return timeout(&lua, options.as_ref());
                }
                let why = format!(
                    "exec must not run {program}: the configuration has to allow it by exec {{ allow = {{ \"{program}\" }} }}"
                );
                Err(fail(&lua, why))
            });
            let begun = allowed.and_then(|limit| {
                let arguments = arguments.map_or(Ok(Vec::new()), |given| texts(&lua, &given))?;
                let input = options
                    .and_then(|options| options.raw_get::<Option<mlua::LuaString>>("stdin").ok().flatten())
                    .map_or(Ok(Vec::new()), |text| bytes_to_send(&lua, "exec", &text))?;
                Ok(operate(&lua, "exec", Ok(limit), ran(program, arguments, input)))
            });
            async move {
                match begun?.await? {
                    Err(why) => failure(&lua, &why),
                    Ok(Ran { status, output, errors }) => {
                        let table = lua.create_table()?;
                        table.raw_set("ok", status.success())?;
                        table.raw_set("status", status.code())?;
                        table.raw_set("signal", status.signal())?;
                        table.raw_set("output", lua.create_string(output)?)?;
                        table.raw_set("errors", lua.create_string(errors)?)?;
                        table.into_lua(&lua)
                    }
                }
            }
        },
    )
}

/// Returns the arguments of a program.
fn texts(lua: &Lua, given: &Table) -> mlua::Result<Vec<String>> {
    let count = given.raw_len();
    if count > ARGUMENTS_MAX {
        return Err(fail(lua, format!("exec takes at most {ARGUMENTS_MAX} arguments, got {count}")));
    }
    let mut arguments = Vec::new();
    let mut room = ARGUMENT_BYTES_MAX;
    for number in 1..=count {
        let argument: String = given.raw_get(number)?;
        let left = room.checked_sub(argument.len());
        room = left.ok_or_else(|| {
            fail(lua, format!("the arguments of exec have at most {ARGUMENT_BYTES_MAX} bytes"))
        })?;
        arguments.push(argument);
    }
    Ok(arguments)
}

async fn ran(program: String, arguments: Vec<String>, input: Vec<u8>) -> Outcome<Ran> {
    let mut command = std::process::Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    evener_proxy::descriptors::inherit_none(&mut command);
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input).await;
        }
    };
    let ((), output, errors) = tokio::join!(write, read(stdout), read(stderr));
    let status = wait(&mut child).await.map_err(|error| format!("{program}: {error}"))?;
    group.0 = None;
    Ok(Ran { status, output, errors })
}

async fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    child.wait().await
}

/// Reads to the end. Bytes beyond the limit are dropped.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let mut output = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut piece).await {
        let room = RECEIVED_BYTES_MAX - output.len();
        output.extend_from_slice(&piece[..length.min(room)]);
    }
    output
}
