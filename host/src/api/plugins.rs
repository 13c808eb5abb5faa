//! `/plugins`: the loaded plugins and their statistics; `/plugins/reload`: a reload.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use super::json::json;
use super::problem::{ErrorFormat, Problem};
use crate::any_store::Engine;
use crate::http::Response;
use crate::members::members;
use crate::schema::RouteDocument;
use crate::schema::member::Member;
use vkog_plugin_host::{Chain, HookStats, OnFailure, Plugin, ReloadOutcome, ReloadReport};

/// Lists the loaded plugins in the order of the chain, and the servers on a shared store. Blocks while a reload replaces plugins.
pub(super) fn list(engine: &Engine) -> Response {
    let hosts = engine.store().shared().map(|shared| members(engine, shared));
    json(&engine.plugins().look(|plugins, chain, order| {
        let port = engine.plugins().context();
        let listed = chain.members().iter().filter_map(|member| {
            let plugin = plugins.iter().find(|plugin| plugin.name() == member.name())?;
            let metrics = port.metrics(member.name()).into_iter();
            let metrics = metrics.map(|(name, metric)| (name, metric.value())).collect();
            Some(Listed::new(plugin, chain, order, metrics))
        });
        Plugins { plugins: listed.collect(), hosts }
    }))
}

#[derive(Serialize)]
struct Plugins {
    plugins: Vec<Listed>,
    /// The servers on a shared store.
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Vec<Member>>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    version: String,
    api_version: String,
    path: String,
    sha256: String,
    stage: &'static str,
    /// The stage, which determines its position in the chain.
    ordered_by: &'static str,
    settings: Map<String, Value>,
    on_failure: OnFailure,
    budget_ns: Option<u64>,
    quarantined: bool,
    /// Whether its hooks may block.
    blocks: bool,
    hooks: Vec<Hook>,
    routes: Vec<RouteDocument>,
    metrics: BTreeMap<String, i64>,
}

#[derive(Serialize)]
struct Hook {
    hook: &'static str,
    calls: u64,
    refusals: u64,
    panics: u64,
    overruns: u64,
    time: Time,
}

/// The duration of the measured calls.
#[derive(Serialize)]
struct Time {
    measured: u64,
    p50_ns: Option<u64>,
    p90_ns: Option<u64>,
    p99_ns: Option<u64>,
    max_ns: Option<u64>,
}

impl Listed {
    fn new(plugin: &Plugin, chain: &Chain, order: &[String], metrics: BTreeMap<String, i64>) -> Self {
        let (member, failure_policy) = (plugin.member(), plugin.member().failure_policy());
        Self {
            name: plugin.name().to_owned(),
            version: plugin.library().version().to_owned(),
            api_version: plugin.library().api_version().to_owned(),
            path: plugin.path().display().to_string(),
            sha256: plugin.library().sha256().to_string(),
            stage: plugin.library().stage_name(),
            ordered_by: if order.iter().any(|name| name == plugin.name()) { "plugins.order" } else { "stage" },
            settings: hide_secrets(&plugin.table().settings),
            on_failure: failure_policy.on_failure,
            budget_ns: failure_policy.budget.map(nanoseconds),
            quarantined: member.is_quarantined(),
            blocks: member.blocks(),
            hooks: chain.stats(member).map(|(hook, calls, stats)| Hook::new(hook, calls, stats)).collect(),
            routes: member.routes().iter().map(RouteDocument::from).collect(),
            metrics,
        }
    }
}

impl Hook {
    fn new(hook: &'static str, calls: u64, stats: &HookStats) -> Self {
        let quantile = |part| stats.times().quantile(part).map(nanoseconds);
        let time = Time {
            measured: stats.times().count(),
            p50_ns: quantile(0.5),
            p90_ns: quantile(0.9),
            p99_ns: quantile(0.99),
            max_ns: quantile(1.0),
        };
        Self { hook, calls, refusals: stats.refusals(), panics: stats.panics(), overruns: stats.overruns(), time }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Hides the values of settings whose names suggest a secret, at any depth.
fn hide_secrets(settings: &Map<String, Value>) -> Map<String, Value> {
    const SECRET: [&str; 6] = ["token", "secret", "password", "passphrase", "credential", "key"];
    let hide = |(name, value): (&String, &Value)| {
        let lower = name.to_lowercase();
        let value = match value {
            _ if SECRET.iter().any(|secret| lower.contains(secret)) => Value::from("(hidden)"),
            Value::Object(inner) => hide_secrets(inner).into(),
            Value::Array(items) => items.iter().map(hide_in_item).collect(),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    settings.iter().map(hide).collect()
}

fn hide_in_item(item: &Value) -> Value {
    match item {
        Value::Object(inner) => hide_secrets(inner).into(),
        Value::Array(items) => items.iter().map(hide_in_item).collect(),
        other => other.clone(),
    }
}

#[derive(Serialize)]
struct Reloaded {
    plugins: Vec<TakenIn>,
}

#[derive(Serialize)]
struct TakenIn {
    name: Option<String>,
    path: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Why a reload failed, as a whole or for the plugins.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// The configuration, or a file that it names, cannot be used. Nothing was changed.
    #[error("nothing was reloaded: {0}")]
    Nothing(#[source] Box<dyn Error + Send + Sync>),
    /// The plugin folder cannot be read. Access tokens and the certificate were reloaded.
    #[error("access tokens and the certificate were reloaded, plugins were not: {0}")]
    Plugins(#[source] Box<dyn Error + Send + Sync>),
}

/// The response to a reload: 409 if it failed for a plugin. The other plugins were reloaded.
pub(super) fn reloaded(taken: Result<Vec<ReloadReport>, ReloadError>, format: ErrorFormat) -> Response {
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            let mut title = error.to_string();
            if let Some(first) = title.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            return Problem::new(409, title).reply(format);
        }
    };
    let failed = taken.iter().any(|taken| matches!(taken.outcome, ReloadOutcome::Failed(_)));
    let plugins = taken.into_iter().map(|ReloadReport { path, name, outcome }| {
        let (outcome, error) = match outcome {
            ReloadOutcome::Unchanged => ("kept", None),
            ReloadOutcome::Loaded => ("loaded", None),
            ReloadOutcome::Reloaded => ("reloaded", None),
            ReloadOutcome::Reconfigured => ("reconfigured", None),
            ReloadOutcome::Removed => ("removed", None),
            ReloadOutcome::Failed(error) => ("failed", Some(error)),
        };
        let code = error.as_ref().map(|error| error.fault.code());
        let error = error.map(|error| error.fault.line());
        TakenIn { name, path: path.display().to_string(), outcome, code, error }
    });
    let mut reply = json(&Reloaded { plugins: plugins.collect() });
    reply.status = if failed { 409 } else { 200 };
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_with_secret_names_are_hidden_at_any_depth() {
        let settings = serde_json::json!({
            "limit": 5, "token": "s3cret", "peers": [{ "host": "a", "api_key": "s3cret" }], "tls": { "Password": "s3cret" },
        });
        let Value::Object(settings) = settings else { unreachable!() };
        let shown = Value::Object(hide_secrets(&settings)).to_string();
        assert!(
            !shown.contains("s3cret") && shown.contains("\"limit\":5") && shown.contains("\"host\":\"a\""),
            "{shown}"
        );
    }
}
