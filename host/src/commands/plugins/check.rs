//! `vkog plugins check`: what libraries are, and whether this host would load them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::super::say;
use crate::cli::describe;
use crate::config::Config;
use vkog_plugin_host::{self as plugins, Port};

/// What is said with `--json`. A key keeps its meaning in every version; more may come.
#[derive(Serialize)]
struct Document<'a> {
    plugins: Vec<Told<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Told<'a> {
    Loads {
        path: String,
        ok: bool,
        name: &'a str,
        version: &'a str,
        api_version: &'a str,
        stage: &'static str,
        hooks: Vec<&'static str>,
        required_hooks: Vec<&'static str>,
    },
    Fails {
        path: String,
        ok: bool,
        code: &'static str,
        message: String,
    },
}

/// Loads libraries with their settings, and says what came of each: a line a library, or one JSON document for all.
pub fn check(libraries: &[PathBuf], config: &Config, json: bool) -> ExitCode {
    let port = Arc::new(Port::new(config.max_size, plugins::system_clock));
    let loaded = plugins::load(libraries, &config.plugins.settings, &port);
    let told = libraries.iter().map(|path| path.display().to_string()).zip(&loaded);
    if json {
        let plugins = told
            .map(|(path, result)| match result {
                Ok(plugin) => Told::Loads {
                    path,
                    ok: true,
                    name: plugin.name(),
                    version: plugin.version(),
                    api_version: plugin.api_version(),
                    stage: plugin.stage_name(),
                    hooks: plugin.hook_names().collect(),
                    required_hooks: plugin.required_hook_names().collect(),
                },
                Err(error) => {
                    Told::Fails { path, ok: false, code: error.fault.code(), message: error.fault.to_string() }
                }
            })
            .collect();
        say(&serde_json::to_string_pretty(&Document { plugins }).expect("texts and lists of them are JSON"));
    } else {
        for (path, result) in told {
            say(&match result {
                Ok(plugin) => format!("{path}: {}; this host loads it", describe(plugin)),
                Err(error) => format!("{path}: cannot be loaded: {} [{}]", error.fault, error.fault.code()),
            });
        }
    }
    if loaded.iter().all(Result::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
