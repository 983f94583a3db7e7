//! `POST /v1/plan`, `POST /v1/apply`, `POST /v1/confirm` and `DELETE /v1/confirm`: the effect of a configuration, its
//! application as a whole, and the confirmation. The body is the text of the configuration in Lua.

use super::guard::Audit;
use super::parameters::Parameters;
use super::problem::{self, Failures, failed};
use super::{duration_of, shutting_down};
use crate::config::{self, Config, Problem, Warning};
use crate::inputs::{Inputs, gather};
use crate::state::{ApplyView, PlanCounts, PlanView, PoolMovesView};
use crate::supervisor::{
    Applied, ApplyRequest, Decision, Handle, PlanSetting, Planned, Refusal, ServiceFate,
};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use evener_core::pool::{Fate, Tally};
use evener_proxy::Open;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of addresses in the sample of a pool, and of comparisons with its servers.
const SAMPLES_MAX: usize = 4096;
const COMPARISONS_MAX: usize = 4_000_000;
/// Longest time until a confirmation.
const CONFIRM_MAX: Duration = Duration::from_secs(24 * 3600);

/// Returns the routes.
pub(super) fn routes() -> Router<Handle> {
    let most = usize::try_from(config::FILE_BYTES_MAX).unwrap_or(usize::MAX);
    Router::new()
        .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(most)))
        .route("/v1/apply", post(apply).layer(DefaultBodyLimit::max(most)))
        .route("/v1/confirm", post(confirm).delete(go_back))
}

/// Query parameters of a plan.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanParameters {
    /// Absolute path of the file of the text. Its relative paths begin at the directory of this file.
    #[param(value_type = Option<String>)]
    file: Option<PathBuf>,
}

/// Query parameters of an apply.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ApplyParameters {
    #[param(value_type = Option<String>)]
    file: Option<PathBuf>,
    /// Maximum number of clients and flows that may move, as a number or a part such as `1%`.
    max_moved: Option<String>,
    /// Time after which the configuration before comes back unless it is confirmed.
    confirm: Option<String>,
    /// The plan that is applied, unless the running configuration changed since.
    if_unchanged: Option<String>,
}

/// A limit of the clients and flows that move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MaxMoved {
    Number(usize),
    Percent(f64),
}

impl FromStr for MaxMoved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("write a number such as 100, or a part such as 1%, got {text}");
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Number).map_err(|_| wrong()),
            Some(percent) => match percent.trim().parse() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for MaxMoved {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(out),
            Self::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

impl MaxMoved {
    /// Returns the reason why the counts exceed the limit.
    fn refusal(self, counts: &PlanCounts) -> Option<String> {
        let moved = counts.clients.leaving() + counts.flows.leaving();
        let tracked = counts.clients.tracked + counts.flows.tracked;
        let most = match self {
            Self::Number(most) => most,
            Self::Percent(percent) => (tracked as f64 * percent / 100.0).floor() as usize,
        };
        let over = moved.checked_sub(most).filter(|over| *over > 0)?;
        let percent = 100.0 * moved as f64 / tracked.max(1) as f64;
        Some(format!(
            "{moved} of {tracked} clients and flows would move ({percent:.1} %), {over} more than {most}, the maximum \
             of {self}: nothing changed"
        ))
    }
}

/// A configuration that was read, with its inputs.
struct Prepared {
    config: Config,
    inputs: Inputs,
    name: String,
    /// The file that a reload reads, if it has another text.
    other_file: Option<PathBuf>,
}

impl Prepared {
    fn warnings(&self) -> Vec<String> {
        let other = self.other_file.as_ref().map(|file| {
            let file = file.display();
            format!(
                "a reload or a restart reads {file}, which differs from this configuration: change it, too"
            )
        });
        let warnings = self.config.warnings().iter().map(Warning::to_string);
        warnings.chain(other).collect()
    }
}

fn refused(problems: Vec<String>) -> Response {
    problem::Problem::new(StatusCode::UNPROCESSABLE_ENTITY, problems).into_response()
}

fn refused_by(problems: &[Problem]) -> Response {
    refused(problems.iter().map(ToString::to_string).collect())
}

/// Returns the path of a given file as the instance would write it. If it is in the directory of the file of the start,
/// its relative paths are to be the same texts as those of that file.
fn path_of(given: Option<PathBuf>, start: Option<&Path>) -> Result<PathBuf, String> {
    let beside =
        |name: &std::ffi::OsStr| start.map_or_else(|| name.into(), |start| start.with_file_name(name));
    let Some(given) = given else { return Ok(beside("request".as_ref())) };
    if !given.is_absolute() {
        return Err(format!("`file` must be an absolute path, got {}", given.display()));
    }
    let directory = |file: &Path| {
        let parent = file.parent().filter(|parent| *parent != Path::new(""));
        parent.unwrap_or(Path::new(".")).canonicalize().ok()
    };
    let is_beside =
        start.is_some_and(|start| directory(start).is_some_and(|at| Some(at) == directory(&given)));
    Ok(match given.file_name() {
        Some(name) if is_beside => beside(name),
        _ => given,
    })
}

/// Reads a configuration and its inputs.
async fn prepare(supervisor: &Handle, file: Option<PathBuf>, text: Bytes) -> Result<Prepared, Response> {
    let Some(PlanSetting { tls, file: start }) = supervisor.plan_setting().await else {
        return Err(shutting_down());
    };
    let read = tokio::task::spawn_blocking(move || {
        let path = path_of(file, start.as_deref()).map_err(|why| vec![Problem::new(why)])?;
        let config = config::load_text(&path, &text)?;
        let differs = |start: &PathBuf| std::fs::read(start).ok().as_deref() != Some(&text[..]);
        Ok((config, path.display().to_string(), start.filter(differs)))
    });
    let read = read.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]));
    let (config, name, other_file) = read.map_err(|problems: Vec<Problem>| refused_by(&problems))?;
    let inputs = gather(&config, tls).await.map_err(|problems| refused_by(&problems))?;
    Ok(Prepared { config, inputs, name, other_file })
}

/// Counts the clients and flows that a plan moves.
async fn count(supervisor: &Handle, planned: Planned) -> Option<(Planned, PlanCounts)> {
    let mut open: Vec<(Arc<str>, Vec<Open>)> = Vec::new();
    for service in planned.services.keys() {
        open.push((Arc::clone(service), supervisor.flows(Arc::clone(service)).await?));
    }
    let counting = tokio::task::spawn_blocking(move || {
        let counts = counted(&planned, &open);
        (planned, counts)
    });
    counting.await.ok()
}

fn counted(planned: &Planned, open: &[(Arc<str>, Vec<Open>)]) -> PlanCounts {
    let mut counts = PlanCounts::default();
    for (name, pool) in &planned.pools {
        let mut tally = Tally::default();
        let mut add = |fate: Fate| tally.add(pool.all_leave.map_or(fate, Fate::Moves));
        pool.forecast.visit_sticky(planned.now, |_, _, fate| add(fate));
        for client in pool.recorded.iter().flat_map(|clients| clients.newest(planned.now)) {
            pool.forecast
                .fate_by_policy(client.address, planned.now)
                .into_iter()
                .for_each(|(_, fate)| add(fate));
        }
        let before = pool.forecast.before();
        let removed =
            before.servers().iter().filter(|server| pool.forecast.after().server(server.id).is_none());
        counts.continuing += removed.map(|server| server.live.occupancy.active() as usize).sum::<usize>();
        let samples = SAMPLES_MAX.min(COMPARISONS_MAX / before.servers().len().max(1)) as u32;
        let moved =
            pool.all_leave.is_none().then(|| pool.forecast.share_moved(samples, planned.now)).flatten();
        counts.pools.push(PoolMovesView::new(name, &tally, moved));
        counts.clients.tracked += tally.tracked;
        merge(&mut counts.clients.moved, tally.moved);
        merge(&mut counts.clients.may_move, tally.may_move);
    }
    counts.clients.tracked += planned.other_clients;
    let mut listed = 0;
    for (service, flows) in open {
        let Some(fate) = planned.services.get(service) else { continue };
        for flow in flows {
            listed += 1;
            counts.flows.add(fate_of_flow(planned, fate, flow, &mut counts.continuing));
        }
    }
    // The other flows stay. Some may have ended or begun while they were listed.
    counts.flows.tracked = planned.flows.max(listed);
    counts
}

/// Returns the fate of a flow, which is not one of the connections that continue at a removed server.
fn fate_of_flow(planned: &Planned, of_service: &ServiceFate, flow: &Open, continuing: &mut usize) -> Fate {
    let Some(server) = &flow.server else { return Fate::Stays };
    let forecast = planned.pools.get(&server.pool).map(|pool| &pool.forecast);
    let known = forecast.and_then(|forecast| {
        let entry = forecast.before().servers().iter().find(|entry| entry.name == server.server)?;
        Some((forecast, entry))
    });
    if known.is_some_and(|(forecast, entry)| forecast.after().server(entry.id).is_none()) {
        *continuing = continuing.saturating_sub(1);
    }
    if let Some(reason) = of_service.ends(&server.pool, flow.client) {
        return Fate::Moves(reason);
    }
    known.map_or(Fate::Stays, |(forecast, entry)| forecast.fate_of_flow(entry.id, &entry.target, flow.client))
}

fn merge<K: Ord>(
    into: &mut std::collections::BTreeMap<K, usize>,
    from: std::collections::BTreeMap<K, usize>,
) {
    from.into_iter().for_each(|(reason, count)| *into.entry(reason).or_default() += count);
}

#[utoipa::path(post, path = "/v1/plan", params(PlanParameters), request_body(content = String, content_type = "text/plain"), responses((status = 200, description = "Done", body = PlanView), Failures))]
pub(super) async fn plan(
    State(supervisor): State<Handle>,
    parameters: Parameters<PlanParameters>,
    text: Bytes,
) -> Response {
    let prepared = match prepare(&supervisor, parameters.into_inner().file, text).await {
        Ok(prepared) => prepared,
        Err(response) => return response,
    };
    let warnings = prepared.warnings();
    let Some(planned) = supervisor.plan(prepared.config, prepared.inputs).await else {
        return shutting_down();
    };
    match count(&supervisor, planned).await {
        Some((planned, counts)) => {
            Json(PlanView::new(planned.id, &planned.changes, counts, warnings)).into_response()
        }
        None => shutting_down(),
    }
}

#[utoipa::path(post, path = "/v1/apply", params(ApplyParameters), request_body(content = String, content_type = "text/plain"), responses((status = 200, description = "Done", body = ApplyView), Failures))]
pub(super) async fn apply(
    State(supervisor): State<Handle>,
    parameters: Parameters<ApplyParameters>,
    text: Bytes,
) -> Response {
    let ApplyParameters { file, max_moved, confirm, if_unchanged } = parameters.into_inner();
    let max_moved =
        max_moved.map(|text| text.parse::<MaxMoved>().map_err(|why| format!("`max_moved`: {why}")));
    let (max_moved, confirm) = match (max_moved.transpose(), confirm_time(confirm.as_deref())) {
        (Ok(max_moved), Ok(confirm)) => (max_moved, confirm),
        (Err(why), _) | (_, Err(why)) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let prepared = match prepare(&supervisor, file, text).await {
        Ok(prepared) => prepared,
        Err(response) => return response,
    };
    let mut plan = if_unchanged;
    if let Some(most) = max_moved {
        let planned = supervisor.plan(prepared.config.clone(), prepared.inputs.clone()).await;
        let Some(planned) = planned else { return shutting_down() };
        let Some((planned, counts)) = count(&supervisor, planned).await else { return shutting_down() };
        if let Some(why) = most.refusal(&counts) {
            return failed(StatusCode::CONFLICT, why);
        }
        // The counts are those of this plan.
        plan.get_or_insert(planned.id);
    }
    let warnings = prepared.warnings();
    let Prepared { config, inputs, name, other_file } = prepared;
    let is_of_file = other_file.is_none();
    let subject = format!("configuration {name}");
    let wanted = ApplyRequest { config, inputs, file: name, plan, confirm, is_of_file };
    match supervisor.apply_planned(wanted).await {
        Some(Ok(Applied { changes })) => {
            let audit = Audit::new("apply", subject).after(changes.join("; "));
            audit.on(Json(ApplyView::new(changes, confirm, warnings)).into_response())
        }
        Some(Err(Refusal::Conflict(why))) => failed(StatusCode::CONFLICT, why),
        Some(Err(Refusal::Problems(problems))) => refused(problems),
        Some(Err(Refusal::Ending)) | None => shutting_down(),
    }
}

/// Parses the time until a confirmation.
fn confirm_time(text: Option<&str>) -> Result<Option<Duration>, String> {
    let time = duration_of(text).map_err(|why| why.replace("`for`", "`confirm`"))?;
    match time {
        Some(time) if time > CONFIRM_MAX => Err("`confirm` must be at most 24h".into()),
        time => Ok(time),
    }
}

/// Result of a confirmation.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct ConfirmedView {
    /// `confirmed`, or `going back`.
    done: String,
    /// The applied file.
    file: String,
}

impl ConfirmedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        format!("{}: {}\n", self.file, self.done)
    }
}

#[utoipa::path(post, path = "/v1/confirm", responses((status = 200, description = "Done", body = ConfirmedView), Failures))]
pub(super) async fn confirm(State(supervisor): State<Handle>) -> Response {
    decided(&supervisor, Decision::Keep, "confirmed").await
}

#[utoipa::path(delete, path = "/v1/confirm", responses((status = 200, description = "Done", body = ConfirmedView), Failures))]
pub(super) async fn go_back(State(supervisor): State<Handle>) -> Response {
    decided(&supervisor, Decision::GoBack, "going back").await
}

async fn decided(supervisor: &Handle, decision: Decision, done: &str) -> Response {
    match supervisor.confirm(decision).await {
        Some(Ok(file)) => {
            let audit = Audit::new("confirm", format!("configuration {file}")).after(done);
            audit.on(Json(ConfirmedView { done: done.into(), file }).into_response())
        }
        Some(Err(why)) => failed(StatusCode::CONFLICT, why),
        None => shutting_down(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use evener_core::pool::MoveReason;

    #[test]
    fn a_limit_is_a_number_or_a_part() {
        let counts = |moved: usize, tracked: usize| {
            let mut counts = PlanCounts::default();
            counts.clients.moved.insert(MoveReason::ServerRemoved, moved);
            counts.clients.tracked = tracked;
            counts
        };
        let allows =
            |limit: &str, moved| limit.parse::<MaxMoved>().unwrap().refusal(&counts(moved, 250)).is_none();
        assert!(allows("2", 2) && !allows("2", 3) && allows("0", 0) && !allows("0", 1));
        assert!(allows("1%", 2) && !allows("1%", 3) && allows("1.2 %", 3) && allows("100%", 250));
        for wrong in ["", "%", "-1", "101%", "x", "1%%", "NaN%"] {
            assert!(wrong.parse::<MaxMoved>().is_err(), "{wrong}");
        }
        let why = "1%".parse::<MaxMoved>().unwrap().refusal(&counts(50, 250)).unwrap();
        assert!(why.starts_with("50 of 250 clients and flows would move (20.0 %), 48 more than 2"), "{why}");
    }

    #[test]
    fn a_file_beside_the_file_of_the_start_has_its_notation() {
        let directory = std::env::temp_dir().canonicalize().unwrap();
        let start = directory.join("start.lua");
        let path =
            |given: Option<&Path>, start: Option<&Path>| path_of(given.map(Path::to_owned), start).unwrap();
        let relative = Path::new("/").join(directory.join("./x.lua"));
        assert_eq!(path(Some(&relative), Some(&start)), directory.join("x.lua"));
        assert_eq!(path(Some(Path::new("/x/y.lua")), Some(&start)), Path::new("/x/y.lua"));
        assert_eq!(path(None, Some(Path::new("etc/start.lua"))), Path::new("etc/request"));
        assert_eq!(path(None, None), Path::new("request"));
        assert!(path_of(Some("x.lua".into()), None).is_err());
    }
}
