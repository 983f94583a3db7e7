//! The commands that run an instance (`run`, `tcp`, `udp`, `http`, `dns`).

use super::RunOptions;
use crate::admin::{AdminSocket, MetricsListener};
use crate::config::{self, Config, failure};
use crate::instance::Instance;
use crate::signals::{self, Signals};
use crate::supervisor::{ConfigSource, Setting};
use crate::upgrade::predecessor::Predecessor;
use anyhow::bail;
use evener_core::spec::Spec;
use std::path::{Path, PathBuf};

/// The file that commands read if none is given.
pub(super) const DEFAULT_FILE: &str = "/etc/evener/evener.lua";

/// `evener run FILE`
pub(super) async fn file(file: PathBuf, options: &RunOptions) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let mut before = Predecessor::find()?;
    let started = start_file(file, options, before.as_mut()).await;
    serve(started, before, signals).await
}

/// Runs a specification that has no file.
pub(super) async fn without_file(spec: Spec, options: &RunOptions) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let mut before = Predecessor::find()?;
    let started = start_without_file(spec, options, before.as_mut()).await;
    serve(started, before, signals).await
}

/// An instance that is about to serve.
struct Started {
    instance: Instance,
    admin: AdminSocket,
    metrics: Option<MetricsListener>,
}

async fn start_file(
    file: PathBuf,
    options: &RunOptions,
    mut before: Option<&mut Predecessor>,
) -> anyhow::Result<Started> {
    let permissions = options.admin_permissions()?;
    let config = read(&file).await?;
    let admin = match (inherited_admin(options, before.as_deref_mut())?, &options.admin) {
        (Some(inherited), _) => inherited,
        (None, Some(path)) => AdminSocket::open(path, permissions)?,
        (None, None) => AdminSocket::open_default(permissions)?,
    };
    let metrics = options.open_metrics(before.as_deref_mut()).await?;
    let instance = start(config, options.setting(ConfigSource::File(file)), before).await?;
    Ok(Started { instance, admin, metrics })
}

async fn start_without_file(
    spec: Spec,
    options: &RunOptions,
    mut before: Option<&mut Predecessor>,
) -> anyhow::Result<Started> {
    let permissions = options.admin_permissions()?;
    let admin = match (inherited_admin(options, before.as_deref_mut())?, &options.admin) {
        (Some(inherited), _) => inherited,
        (None, Some(path)) => AdminSocket::open(path, permissions)?,
        (None, None) => AdminSocket::open_any(permissions)?,
    };
    let metrics = options.open_metrics(before.as_deref_mut()).await?;
    let config = Config::without_file(spec);
    let started = start(config, options.setting(ConfigSource::None), before).await;
    let instance = started.map_err(|error| advice_without_file(&format!("{error:#}")))?;
    Ok(Started { instance, admin, metrics })
}

/// Returns the admin socket of the running instance at an upgrade.
fn inherited_admin(
    options: &RunOptions,
    before: Option<&mut Predecessor>,
) -> anyhow::Result<Option<AdminSocket>> {
    let inherited = before.and_then(|before| before.take_admin(options.admin.as_deref()));
    inherited.map(|(path, socket)| AdminSocket::adopt(&path, socket)).transpose()
}

async fn start(
    config: Config,
    setting: Setting,
    before: Option<&mut Predecessor>,
) -> anyhow::Result<Instance> {
    match before {
        Some(before) => Instance::succeed(config, setting, before).await,
        None => Instance::start(config, setting).await,
    }
}

/// Takes over from the running instance at an upgrade, and serves.
async fn serve(
    started: anyhow::Result<Started>,
    mut before: Option<Predecessor>,
    signals: Signals,
) -> anyhow::Result<()> {
    let taken_over = started.and_then(|mut started| {
        before.as_mut().map(|before| started.instance.take_over(before)).transpose()?;
        Ok(started)
    });
    let Started { mut instance, admin, metrics } = taken_over.inspect_err(|error| {
        before.iter().for_each(|before| before.fail(&format!("{error:#}")));
    })?;
    instance.serve_admin(admin);
    metrics.into_iter().for_each(|listener| instance.serve_metrics(listener));
    before.into_iter().for_each(|before| instance.follow(before));
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
