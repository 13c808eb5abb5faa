//! `vkog plugins ls`: the libraries of a plugin folder, and whether a server would load them.

use std::process::ExitCode;

use serde::Serialize;
use vkog_plugin_host::{
    GlibcVersion, Library, LoadError, SKIPPED, Settings, is_called_after, is_no_plugin, is_required,
};

use super::folder::{FolderArgs, PluginFolder, contains, file_name, table};
use crate::commands::say;
use crate::failure::Failure;

/// The arguments of `vkog plugins ls`.
#[derive(clap::Args)]
pub struct Ls {
    #[command(flatten)]
    folder: FolderArgs,

    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The document of `--json`. Later versions may add keys; a key keeps its meaning.
#[derive(Serialize)]
struct Document {
    folder: String,
    plugins: Vec<Row>,
}

/// Whether a server loads a library.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It passes every check. Whether the plugin accepts its settings is not checked.
    Loads,
    /// It does not load.
    Fails,
    /// It exports no plugin, and the server skips it.
    Skipped,
    /// The configuration requires a plugin that no library contains.
    Missing,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Loads => "loads",
            Self::Fails => "fails",
            Self::Skipped => "skipped",
            Self::Missing => "missing",
        }
    }
}

#[derive(Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    status: Status,
    pinned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    about: About,
}

/// Facts about a library that loads, or the reason why one does not.
#[derive(Serialize)]
#[serde(untagged)]
enum About {
    Library {
        version: String,
        api_version: String,
        sha256: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        glibc: Option<GlibcVersion>,
        stage: &'static str,
        hooks: Vec<&'static str>,
        required_hooks: Vec<&'static str>,
        /// Of the stores that it opens as a backend.
        #[serde(skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
    },
    Reason {
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        /// Whether the server refuses to start.
        required: bool,
        message: String,
    },
}

/// Prints a table of the libraries in the plugin folder. A library that does not load is no error.
///
/// # Errors
///
/// The configuration or the folder cannot be read.
pub fn ls(Ls { folder, json }: Ls) -> Result<ExitCode, Failure> {
    let folder = folder.resolve()?;
    let rows = rows(&folder)?;
    if json {
        let document = Document { folder: folder.path.display().to_string(), plugins: rows };
        say(&serde_json::to_string_pretty(&document)?);
    } else if rows.is_empty() {
        say(&format!("no libraries in {}", folder.path.display()));
    } else {
        let head =
            ["FILE", "PLUGIN", "VERSION", "STAGE", "API", "PINNED", "STATUS", "HOOKS OR REASON"].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
        say(table(&lines).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(folder: &PluginFolder) -> Result<Vec<Row>, Failure> {
    let settings = folder.settings();
    let opened = folder.open()?;
    let rows = opened.iter().map(|result| match result {
        Ok(library) => Row::of_library(library, settings),
        Err(error) => Row::of_error(error, settings),
    });
    let mut rows: Vec<Row> = rows.collect();
    let is_there = |name: &str| opened.iter().any(|result| contains(result, name));
    let expected = settings.iter().filter(|(name, table)| table.host.is_expected && !is_there(name));
    let missing: Vec<Row> = expected.map(|(name, table)| Row::missing(name, table.host.sha256.is_some())).collect();
    rows.extend(missing);
    Ok(rows)
}

impl Row {
    fn of_library(library: &Library, settings: &Settings) -> Self {
        Self {
            file: Some(file_name(library.path())),
            status: Status::Loads,
            pinned: settings.get(library.name()).is_some_and(|table| table.host.sha256.is_some()),
            name: Some(library.name().to_owned()),
            about: About::Library {
                version: library.version().to_owned(),
                api_version: library.api_version().to_owned(),
                sha256: library.sha256().to_string(),
                glibc: library.glibc(),
                stage: library.stage_name(),
                hooks: library.hook_names().collect(),
                required_hooks: library.required_hook_names(),
                scheme: library.scheme().map(str::to_owned),
            },
        }
    }

    fn of_error(error: &LoadError, settings: &Settings) -> Self {
        let name = error.fault.plugin().map(str::to_owned);
        let is_it = |plugin: &str| match &name {
            Some(name) => name == plugin,
            None => is_called_after(&error.path, plugin),
        };
        let pinned = settings.iter().any(|(plugin, table)| table.host.sha256.is_some() && is_it(plugin));
        let (status, required, message) = if is_no_plugin(settings, &error.path, &error.fault) {
            (Status::Skipped, false, SKIPPED.to_owned())
        } else {
            (Status::Fails, is_required(settings, error), error.fault.line())
        };
        let about = About::Reason { code: Some(error.fault.code()), required, message };
        Self { file: Some(file_name(&error.path)), status, pinned, name, about }
    }

    fn missing(name: &str, pinned: bool) -> Self {
        let message = format!(
            "[plugins.{name}] requires the plugin, and no library contains it; add its library, or remove {}",
            if pinned { "the pin" } else { "required = true" }
        );
        let about = About::Reason { code: None, required: true, message };
        Self { file: None, status: Status::Missing, pinned, name: Some(name.to_owned()), about }
    }

    fn cells(&self) -> [String; 8] {
        let absent = || "-".to_owned();
        let (version, stage, api, last) = match &self.about {
            About::Library { version, stage, api_version, hooks, scheme, .. } => {
                let mut last = hooks.clone();
                last.extend(scheme.as_ref().map(|_| "backend"));
                (version.clone(), (*stage).to_owned(), api_version.clone(), last.join(" "))
            }
            About::Reason { code, message, .. } => {
                let code = code.map(|code| format!(" [{code}]")).unwrap_or_default();
                (absent(), absent(), absent(), format!("{message}{code}"))
            }
        };
        [
            self.file.clone().unwrap_or_else(absent),
            self.name.clone().unwrap_or_else(absent),
            version,
            stage,
            api,
            if self.pinned { "yes" } else { "no" }.to_owned(),
            self.status.name().to_owned(),
            last,
        ]
    }
}
