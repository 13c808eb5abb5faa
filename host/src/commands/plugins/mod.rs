//! The commands for plugins: `new` creates a crate, `check` loads libraries, and `add`, `ls` and `rm` manage the plugin folder
//! of a server and the pins in its configuration.

pub mod add;
pub mod check;
mod download;
mod folder;
pub mod ls;
pub mod new;
pub mod rm;

pub(crate) use self::download::DownloadError;
