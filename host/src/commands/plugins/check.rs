//! `vkog plugins check`: describes plugin libraries and reports whether this server would load them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::super::say;
use crate::config::Config;
use crate::schema::RouteDocument;
use vkog_plugin_host::{self as plugins, GlibcVersion, HostContext, LoadError, LoadFault};

/// The document of `--json`. Later versions may add keys; a key keeps its meaning.
#[derive(Serialize)]
struct Document<'a> {
    plugins: Vec<Verdict<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Verdict<'a> {
    Loads {
        path: String,
        ok: bool,
        name: &'a str,
        version: &'a str,
        api_version: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        glibc: Option<GlibcVersion>,
        stage: &'static str,
        hooks: Vec<&'static str>,
        required_hooks: Vec<&'static str>,
        /// Of the stores that it opens as a backend.
        #[serde(skip_serializing_if = "Option::is_none")]
        scheme: Option<&'a str>,
        routes: Vec<RouteDocument>,
    },
    Fails {
        path: String,
        ok: bool,
        code: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        glibc: Option<GlibcVersion>,
        message: String,
    },
}

/// Loads libraries with their settings and prints the result: a line for each library, or one JSON document for all.
///
/// # Errors
///
/// The document cannot be made.
pub fn check(libraries: &[PathBuf], config: &Config, json: bool) -> serde_json::Result<ExitCode> {
    let port = Arc::new(HostContext::new(config.max_size, plugins::system_clock));
    let loaded = plugins::load(libraries, &config.plugins.settings, &port);
    let results = libraries.iter().map(|path| path.display().to_string()).zip(&loaded);
    if json {
        let plugins = results
            .map(|(path, result)| match result {
                Ok(plugin) => Verdict::Loads {
                    path,
                    ok: true,
                    name: plugin.name(),
                    version: plugin.library().version(),
                    api_version: plugin.library().api_version(),
                    glibc: plugin.library().glibc(),
                    stage: plugin.library().stage_name(),
                    hooks: plugin.library().hook_names().collect(),
                    required_hooks: plugin.library().required_hook_names(),
                    scheme: plugin.scheme(),
                    routes: plugin.member().routes().iter().map(RouteDocument::from).collect(),
                },
                Err(LoadError { fault, .. }) => {
                    let glibc = match fault {
                        LoadFault::NewerGlibc { needed, .. } => Some(*needed),
                        _ => None,
                    };
                    Verdict::Fails { path, ok: false, code: fault.code(), glibc, message: fault.line() }
                }
            })
            .collect();
        say(&serde_json::to_string_pretty(&Document { plugins })?);
    } else {
        for (path, result) in results {
            say(&match result {
                Ok(plugin) => format!("{path}: {plugin}; this server loads it"),
                Err(error) => format!("{path}: cannot be loaded: {} [{}]", error.fault.line(), error.fault.code()),
            });
        }
    }
    Ok(if loaded.iter().all(Result::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
