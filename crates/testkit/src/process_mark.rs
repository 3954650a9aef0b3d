//! A variable that all processes of a test's programs inherit, so that none can be left over unseen.

use std::fs;

use crate::eventually;

const VARIABLE_NAME: &str = "GALLEY_TEST_MARK";

/// A value that no other process has in its environment.
pub struct ProcessMark(String);

impl ProcessMark {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// The variable: name and value.
    #[must_use]
    pub fn env_variable(&self) -> (&'static str, &str) {
        (VARIABLE_NAME, &self.0)
    }

    /// The command lines of all processes that have it.
    ///
    /// # Panics
    /// There is no `/proc`.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let searched = format!("{VARIABLE_NAME}={}", self.0);
        let folders = fs::read_dir("/proc").expect("there is /proc").flatten().map(|entry| entry.path());
        folders
            .filter(|folder| fs::read(folder.join("environ")).is_ok_and(|text| has_variable(&text, &searched)))
            .map(|folder| fs::read(folder.join("cmdline")).unwrap_or_default())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .collect()
    }

    /// Waits until one of the processes has become the program whose command line begins with that.
    ///
    /// # Panics
    /// None does.
    pub async fn wait_until_running(&self, beginning: &str) {
        let is_there = || self.processes().iter().any(|line| line.starts_with(beginning));
        eventually(&format!("{beginning:?} runs"), || async { is_there().then_some(()) }).await;
    }

    /// Waits until there is none of them, nor a child of that process that is dead but not reaped.
    ///
    /// # Panics
    /// There are some for longer.
    pub async fn wait_until_all_exited(&self, parent: u32) {
        let what = format!("no process of {VARIABLE_NAME}={} is left", self.0);
        eventually(&what, || async { (self.processes().is_empty() && count_zombies(parent) == 0).then_some(()) }).await;
    }
}

fn has_variable(environment: &[u8], variable: &str) -> bool {
    environment.split(|byte| *byte == 0).any(|text| text == variable.as_bytes())
}

/// Children of a process that nobody has reaped.
fn count_zombies(parent: u32) -> usize {
    let parent = parent.to_string();
    let folders = fs::read_dir("/proc").expect("there is /proc").flatten().map(|entry| entry.path());
    let is_zombie = |stat: &str| {
        // "42 (name) Z 41 ...", and a name may have anything in it
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.next() == Some("Z") && fields.next() == Some(&parent)
    };
    folders.filter(|folder| fs::read_to_string(folder.join("stat")).is_ok_and(|stat| is_zombie(&stat))).count()
}
