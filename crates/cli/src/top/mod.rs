//! `galley top`: queues and workers as they are now, in a terminal.

mod sample;
mod screen;
mod state;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::state::{TopKey, TopState};
use crate::{
    failure::{CliError, CliResult},
    session::Session,
};

/// How often the thread that reads keys looks whether it is still needed.
const KEY_POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    interval: f64,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    if (0.2..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("must be 0.2 to 3600".to_owned()) }
}

impl TopArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(CliError::usage("top needs a terminal; scripts use `galley queues list --json`"));
        }
        // First, so that a wrong URL or key is said on an ordinary screen
        let first = sample::take(session).await?;
        let mut state = TopState::new(session.gateway.shown_url());
        state.update(Ok(first));
        let mut terminal = ratatui::try_init()?;
        let ended = self.watch(session, &mut terminal, &mut state).await;
        ratatui::try_restore()?;
        ended
    }

    async fn watch(
        &self,
        session: &Session,
        terminal: &mut ratatui::DefaultTerminal,
        state: &mut TopState,
    ) -> CliResult {
        let mut keys = read_events();
        let mut ticks = interval(Duration::from_secs_f64(self.interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        loop {
            terminal.draw(|frame| screen::draw(frame, state))?;
            tokio::select! {
                event = keys.recv() => match event {
                    None => return Ok(()),
                    Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match key_of(key) {
                        Some(TopKey::Quit) => return Ok(()),
                        Some(key) => state.press(key),
                        None => {}
                    },
                    // Such as another size: it is drawn again
                    Some(_) => {}
                },
                _ = ticks.tick(), if !state.is_paused() => state.update(sample::take(session).await),
            }
        }
    }
}

/// Events of the terminal, which only a thread can wait for. It ends when nobody receives them.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(event) => {
                        if sender.blocking_send(event).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                },
                // The terminal is gone
                Err(_) => return,
            }
        }
    });
    receiver
}

fn key_of(key: KeyEvent) -> Option<TopKey> {
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => TopKey::Quit,
        KeyCode::Char('q') | KeyCode::Esc => TopKey::Quit,
        KeyCode::Char('p' | ' ') => TopKey::Pause,
        KeyCode::Char('s') | KeyCode::Right => TopKey::NextSort,
        KeyCode::Left => TopKey::PreviousSort,
        KeyCode::Char('r') => TopKey::Reverse,
        KeyCode::Down | KeyCode::Char('j') => TopKey::Down,
        KeyCode::Up | KeyCode::Char('k') => TopKey::Up,
        _ => return None,
    })
}
