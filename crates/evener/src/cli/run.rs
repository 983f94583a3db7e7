//! The commands that run an instance (`run`, `tcp`, `udp`, `http`, `dns`).

use super::RunOptions;
use crate::admin::AdminSocket;
use crate::config::{self, Config, failure};
use crate::instance::Instance;
use crate::signals::{self, Signals};
use crate::supervisor::ConfigSource;
use anyhow::bail;
use evener_core::spec::Spec;
use std::path::{Path, PathBuf};

/// The file that commands read if none is given.
pub(super) const DEFAULT_FILE: &str = "/etc/evener/evener.lua";

/// `evener run FILE`
pub(super) async fn file(file: PathBuf, options: &RunOptions) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let permissions = options.admin_permissions()?;
    let config = read(&file).await?;
    let admin = match &options.admin {
        Some(path) => AdminSocket::open(path, permissions)?,
        None => AdminSocket::open_default(permissions)?,
    };
    let metrics = options.open_metrics().await?;
    let mut instance = Instance::start(config, options.setting(ConfigSource::File(file))).await?;
    instance.serve_admin(admin);
    metrics.into_iter().for_each(|listener| instance.serve_metrics(listener));
    instance.run(signals).await;
    Ok(())
}

/// Runs a specification that has no file.
pub(super) async fn without_file(spec: Spec, options: &RunOptions) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let permissions = options.admin_permissions()?;
    let admin = match &options.admin {
        Some(path) => AdminSocket::open(path, permissions)?,
        None => AdminSocket::open_any(permissions)?,
    };
    let metrics = options.open_metrics().await?;
    let config = Config::without_file(spec);
    let started = Instance::start(config, options.setting(ConfigSource::None)).await;
    let mut instance = started.map_err(|error| advice_without_file(&format!("{error:#}")))?;
    instance.serve_admin(admin);
    metrics.into_iter().for_each(|listener| instance.serve_metrics(listener));
    instance.run(signals).await;
    Ok(())
}

/// Returns the error of a start without a file. A key of a configuration is not available there.
fn advice_without_file(error: &str) -> anyhow::Error {
    let advice = "set `freebind = true`";
    anyhow::anyhow!(
        "{}",
        error.replace(advice, &format!("write a file with --print and {advice} in its service"))
    )
}

/// Reads a configuration file; `-` is the standard input.
pub(super) async fn read(file: &Path) -> anyhow::Result<Config> {
    if file == Path::new(DEFAULT_FILE) && !file.exists() {
        bail!(
            "{DEFAULT_FILE} does not exist: give another file, or begin without a file: `evener demo` shows a \
             failover, and `evener init` writes a first file"
        );
    }
    let file = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    let path = file.to_owned();
    let config = tokio::task::spawn_blocking(move || config::load(&path)).await?;
    config.map_err(|problems| failure(&problems))
}
