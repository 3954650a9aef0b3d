//! `section!`: one entry for each setting. The struct, the check, `config/default.toml` and the reference follow from
//! it.
//!
//! An entry reads `key => field: type = kind(allowed, default)`. Its comment is the documentation of the setting.
//! A `<name>` in a key or a section stands for any name: `queues.<queue>` is a table with an entry for each queue.

use std::{ops::RangeInclusive, path::Path};

use config::{Map, Value, ValueKind};

use super::{
    SettingError,
    error::invalid_value,
    kinds::{Kind, type_name},
    secret_file,
};

/// What the files say about a section.
pub(super) struct SectionText {
    pub(super) name: &'static str,
    pub(super) about: Vec<&'static str>,
    pub(super) settings: Vec<SettingText>,
}

/// What the files say about a setting.
pub(super) struct SettingText {
    pub(super) key: &'static str,
    pub(super) doc: Vec<&'static str>,
    pub(super) unit: &'static str,
    pub(super) default: ValueKind,
    pub(super) example: Option<&'static str>,
    pub(super) allowed: String,
    pub(super) range: Option<RangeInclusive<u64>>,
    pub(super) is_secret: bool,
}

/// Declares the settings of one section, and the struct that holds their checked values.
///
/// A last entry `..field: Type` holds settings of the same section that another declaration describes.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $vis:vis struct $Struct:ident = $section:literal {
            $($(#[doc = $doc:literal])+ $key:literal => $field:ident: $Type:ty = $kind:expr;)+
            $(..$(#[doc = $more:literal])+ $rest:ident: $Rest:ty;)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        $vis struct $Struct {
            $($(#[doc = $doc])+ $vis $field: $Type,)+
            $($(#[doc = $more])+ $vis $rest: $Rest,)?
        }

        impl $Struct {
            /// Takes the settings out of their section and checks them.
            pub(in crate::settings) fn read(
                section: &mut $crate::settings::declare::Section,
            ) -> Result<Self, $crate::settings::SettingError> {
                Ok(Self {
                    $($field: section.take($key, $kind)?,)+
                    $($rest: <$Rest>::read(section)?,)?
                })
            }

            /// What the files of documentation say about the section.
            pub(in crate::settings) fn describe() -> $crate::settings::declare::SectionText {
                $crate::settings::declare::describe_section($section, &[$($about),+], vec![
                    $($crate::settings::declare::describe::<$Type>($key, &[$($doc),+], $kind),)+
                ])
            }
        }
    };
}
pub(super) use section;

/// The settings of a section that are set and that nothing has taken yet.
pub(super) struct Section {
    /// Its name; empty for the table of all sections.
    name: String,
    values: Map<String, Value>,
    /// Every key that something asked for: the settings that exist.
    known: Vec<String>,
}

impl Section {
    pub(super) fn new(name: impl Into<String>, values: Map<String, Value>) -> Self {
        Self { name: name.into(), values, known: Vec::new() }
    }

    /// The checked value of a setting: what is set, else its default.
    pub(super) fn take<T>(&mut self, key: &str, kind: Kind<T>) -> Result<T, SettingError> {
        let (key, _) = split_placeholder(key);
        let given = if kind.is_secret { self.remove_secret(key, &kind.default)? } else { self.remove(key) };
        let value = given.unwrap_or_else(|| Value::new(None, kind.default));
        (kind.check)(&self.full_key(key), value)
    }

    /// Reads a table of this one, and refuses keys in it that do not exist.
    pub(super) fn section<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Section) -> Result<T, SettingError>,
    ) -> Result<T, SettingError> {
        let mut section = Section::new(self.full_key(key), self.table(key)?);
        let settings = read(&mut section)?;
        section.finish()?;
        Ok(settings)
    }

    /// Reads each table of a table of tables, with its name.
    pub(super) fn entries<T>(
        &mut self,
        key: &str,
        read: impl Fn(&mut Section) -> Result<T, SettingError>,
    ) -> Result<Vec<(String, T)>, SettingError> {
        let mut tables = Section::new(self.full_key(key), self.table(key)?);
        let mut names: Vec<String> = tables.values.keys().cloned().collect();
        names.sort_unstable();
        names.into_iter().map(|name| tables.section(&name, &read).map(|entry| (name, entry))).collect()
    }

    /// Refuses what is set but does not exist.
    pub(super) fn finish(self) -> Result<(), SettingError> {
        let Some(key) = self.values.keys().min() else { return Ok(()) };
        Err(SettingError::Unknown { key: self.full_key(key), known: self.known.join(", ") })
    }

    fn table(&mut self, key: &str) -> Result<Map<String, Value>, SettingError> {
        match self.remove(key) {
            None => Ok(Map::new()),
            Some(Value { kind: ValueKind::Table(values), .. }) => Ok(values),
            // Who means redis.url may have set redis, with a password
            Some(other) => Err(invalid_value(&self.full_key(key), "a table", type_name(&other.kind))),
        }
    }

    /// The value of a setting that can be in a file of its own, which `<key>_file` names. The default counts as not set.
    fn remove_secret(&mut self, key: &str, default: &ValueKind) -> Result<Option<Value>, SettingError> {
        let file_key = format!("{key}_file");
        let value = self.remove(key).filter(|value| value.kind != *default);
        let path = match self.remove(&file_key).map(|path| path.kind) {
            None => return Ok(value),
            Some(ValueKind::String(path)) if path.is_empty() => return Ok(value),
            Some(ValueKind::String(path)) => path,
            Some(other) => return Err(invalid_value(&self.full_key(&file_key), "a path", type_name(&other))),
        };
        if value.is_some() {
            return Err(SettingError::Conflict { first: self.full_key(key), second: self.full_key(&file_key) });
        }
        let text = secret_file::read(Path::new(&path));
        let text = text.map_err(|problem| SettingError::File { key: self.full_key(&file_key), path, problem })?;
        Ok(Some(Value::new(None, text)))
    }

    fn remove(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        self.values.remove(key)
    }

    fn full_key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// `weights.<queue>` is `weights`, a table with any names.
pub(super) fn split_placeholder(key: &str) -> (&str, Option<&str>) {
    key.split_once(".<").map_or((key, None), |(key, name)| (key, Some(name)))
}

pub(super) fn describe_section(name: &'static str, about: &[&'static str], settings: Vec<SettingText>) -> SectionText {
    SectionText { name, about: lines(about), settings }
}

pub(super) fn describe<T>(key: &'static str, doc: &[&'static str], kind: Kind<T>) -> SettingText {
    let Kind { default, example, unit, allowed, range, is_secret, check: _ } = kind;
    SettingText { key, doc: lines(doc), unit, default, example, allowed, range, is_secret }
}

/// The text of a doc comment, which has a space before each line.
fn lines(doc: &[&'static str]) -> Vec<&'static str> {
    doc.iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect()
}
