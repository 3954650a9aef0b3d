//! `galley config`: the settings of the services, without a service.

use clap::{Args, Subcommand};
use common::settings::{self, SettingSource, Settings};
use serde_json::json;

use crate::{
    failure::{CliError, CliResult},
    table::TextTable,
    terminal::Terminal,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the settings that a service would start with here.
    Check(ConfigArgs),
    /// Print every setting with its value and where that came from. Secrets are not shown.
    Print(ConfigPrintArgs),
    /// Print the JSON Schema of a settings file, for editors.
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The settings file. Else the one that GALLEY_CONFIG names. GALLEY__SECTION__KEY counts too, as for a service.
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigPrintArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only what is not the default.
    #[arg(long)]
    changed: bool,
}

impl ConfigArgs {
    fn file(&self) -> Option<String> {
        let named = || std::env::var("GALLEY_CONFIG").ok().filter(|path| !path.is_empty());
        self.file.clone().or_else(named)
    }
}

impl ConfigCommand {
    pub(crate) fn run(self, terminal: Terminal) -> CliResult {
        match self {
            Self::Check(args) => check(&args, terminal),
            Self::Print(args) => print(&args, terminal),
            Self::Schema => {
                let schema = serde_json::to_string_pretty(&settings::json_schema());
                terminal.line(&schema.map_err(|error| CliError::failed(error.to_string()))?)
            }
        }
    }
}

fn refused(error: &settings::SettingError) -> CliError {
    CliError::failed(error.to_string())
}

fn check(args: &ConfigArgs, terminal: Terminal) -> CliResult {
    let file = args.file();
    Settings::from_sources(file.as_deref(), settings::environment()).map_err(|error| refused(&error))?;
    let what = file.map_or_else(|| "defaults and environment".to_owned(), |file| format!("{file} and environment"));
    terminal.line(&format!("the settings are valid: {what}"))
}

fn print(args: &ConfigPrintArgs, terminal: Terminal) -> CliResult {
    let file = args.config.file();
    let values = settings::values_with_sources(file.as_deref(), settings::environment());
    let mut values = values.map_err(|error| refused(&error))?;
    values.retain(|value| !args.changed || value.source != SettingSource::Default);
    let source = |source: &SettingSource| match source {
        SettingSource::Default => "default".to_owned(),
        SettingSource::File => file.clone().unwrap_or_default(),
        SettingSource::Variable(name) => name.clone(),
    };
    if terminal.json {
        let items = values.iter().map(|value| {
            // TOML writes these values as JSON does
            let text = value.value.as_deref().unwrap_or("null");
            let json = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            json!({ "key": value.key, "value": json, "source": source(&value.source) })
        });
        return terminal.line(&json!({ "items": items.collect::<Vec<_>>() }).to_string());
    }
    let mut table = TextTable::new(&["setting", "value", "from"]);
    for value in &values {
        let text = value.value.as_deref().unwrap_or("not set");
        table.row([value.key.clone(), common::text::printable(text.as_bytes()), source(&value.source)]);
    }
    table.print(terminal)
}
