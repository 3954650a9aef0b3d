//! Draws the state.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table},
};

use super::state::{SortColumn, TopQueueRow, TopState};

/// The most lines that workers take.
const MAX_WORKER_LINES: u16 = 10;
const PLOT_LINES: u16 = 4;

pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState) {
    let area = frame.area();
    let lines = u16::try_from(state.workers.len()).unwrap_or(u16::MAX);
    let workers = lines.saturating_add(2).min(MAX_WORKER_LINES).min(area.height / 3);
    // A low terminal has room for queues only
    let plot = if area.height >= 20 { PLOT_LINES } else { 0 };
    let parts = [
        Constraint::Length(3),
        Constraint::Length(plot),
        Constraint::Min(3),
        Constraint::Length(workers),
        Constraint::Length(1),
    ];
    let [head, plot, queues, workers, foot] = Layout::vertical(parts).areas(area);
    draw_head(frame, state, head);
    draw_plot(frame, state, plot);
    draw_queues(frame, state, queues);
    draw_workers(frame, state, workers);
    let keys = " q quit  p pause  ←→ sort  r reverse  ↑↓ scroll";
    frame.render_widget(Paragraph::new(keys).style(faint()), foot);
}

fn faint() -> Style {
    Style::default().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::default().add_modifier(Modifier::BOLD)
}

fn draw_head(frame: &mut Frame<'_>, state: &TopState, area: Rect) {
    let sum = |count: fn(&TopQueueRow) -> u64| state.rows.iter().map(count).sum::<u64>();
    let (rate, failed): (f64, f64) =
        state.rows.iter().fold((0.0, 0.0), |(rate, failed), row| (rate + row.rate, failed + row.failed_rate));
    let dead = sum(|row| row.queue.dead);
    let more = if state.has_more { " of the first queues" } else { "" };
    let totals = Line::from(vec![
        Span::raw(" waiting "),
        Span::styled(sum(|row| row.queue.waiting).to_string(), bold()),
        Span::raw("  running "),
        Span::styled(sum(|row| row.queue.running).to_string(), bold()),
        Span::raw("  done/s "),
        Span::styled(format!("{rate:.1}"), bold()),
        Span::raw("  failed/s "),
        Span::styled(format!("{failed:.1}"), if failed > 0.0 { bold().fg(Color::Red) } else { bold() }),
        Span::raw("  dead "),
        Span::styled(dead.to_string(), if dead > 0 { bold().fg(Color::Red) } else { bold() }),
        Span::raw(format!("  workers {}{more}", state.workers.len())),
    ]);
    let mut first = vec![Span::styled(" galley ", bold()), Span::raw(state.url.clone())];
    if state.is_paused() {
        first.push(Span::styled("  paused", bold().fg(Color::Yellow)));
    }
    if let Some(problem) = &state.problem {
        first.push(Span::styled(format!("  {problem}"), bold().fg(Color::Red)));
    }
    frame.render_widget(Paragraph::new(vec![Line::from(first), totals, last_minutes_line(state)]), area);
}

/// What the history says of the last minutes.
fn last_minutes_line(state: &TopState) -> Line<'static> {
    let Some(last) = &state.last_minutes else { return Line::default() };
    let times = |pair: Option<(u64, u64)>| match pair {
        Some((median, p99)) => format!("{median} ms, p99 {p99} ms"),
        None => "-".to_owned(),
    };
    Line::from(vec![
        Span::styled(" last 5 minutes: ", faint()),
        Span::raw(format!("done {}  failed {}", last.completed, last.failed)),
        Span::raw(format!("  ran {}  waited {}", times(last.ran), times(last.waited))),
    ])
}

fn draw_plot(frame: &mut Frame<'_>, state: &TopState, area: Rect) {
    // The latest, as many as there are columns
    let skipped = state.history.len().saturating_sub(usize::from(area.width));
    let rates: Vec<u64> = state.history.iter().skip(skipped).copied().collect();
    let most = rates.iter().max().copied().unwrap_or(0);
    let block = Block::new().borders(Borders::TOP).title(format!(" done in a second, at most {most} "));
    let plot = Sparkline::default().block(block).data(&rates).style(Style::default().fg(Color::Green));
    frame.render_widget(plot, area);
}

fn draw_queues(frame: &mut Frame<'_>, state: &TopState, area: Rect) {
    let titles = SortColumn::ALL.map(|column| {
        let is_sorted = column == state.sort;
        let arrow = if state.is_reversed { " ▲" } else { " ▼" };
        let title = format!("{}{}", column.title(), if is_sorted { arrow } else { "" });
        Cell::from(title).style(if is_sorted { bold() } else { faint() })
    });
    let head = Row::new(titles.into_iter().chain([Cell::from("state").style(faint())]));
    let rows = state.rows.iter().skip(state.scroll).map(|row| {
        let TopQueueRow { queue, rate, failed_rate } = row;
        let (text, color) = match (queue.is_paused, queue.is_drained) {
            (true, _) => ("paused", Color::Yellow),
            (false, true) => ("draining", Color::Yellow),
            (false, false) => ("running", Color::Green),
        };
        let red_if = |is_bad: bool| if is_bad { Style::default().fg(Color::Red) } else { Style::default() };
        Row::new(vec![
            Cell::from(queue.name.clone()),
            Cell::from(queue.waiting.to_string()),
            Cell::from(queue.running.to_string()),
            Cell::from(format!("{rate:.1}")),
            Cell::from(format!("{failed_rate:.1}")).style(red_if(*failed_rate > 0.0)),
            Cell::from(queue.dead.to_string()).style(red_if(queue.dead > 0)),
            Cell::from(text).style(Style::default().fg(color)),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    let title = format!(" queues {} ", state.rows.len());
    let table = Table::new(rows, widths).header(head).block(Block::new().borders(Borders::TOP).title(title));
    frame.render_widget(table, area);
}

fn draw_workers(frame: &mut Frame<'_>, state: &TopState, area: Rect) {
    let rows = state.workers.iter().map(|worker| {
        let of = if worker.concurrency > 0 { format!(" of {}", worker.concurrency) } else { String::new() };
        Row::new(vec![
            Cell::from(worker.name.clone()),
            Cell::from(worker.state.clone()),
            Cell::from(format!("{}{of} jobs", worker.active_jobs)),
            Cell::from(worker.queues.clone()),
        ])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(12), Constraint::Length(18), Constraint::Fill(1)];
    let title = format!(" workers {} ", state.workers.len());
    let table = Table::new(rows, widths).block(Block::new().borders(Borders::TOP).title(title));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::{
        failure::CliError,
        top::{
            sample::{LastMinutes, QueueSample, TopSample, WorkerSample},
            state::TopKey,
        },
    };

    fn sample(at: Instant, completed: u64) -> TopSample {
        let queue = |name: &str, waiting, completed, is_paused| QueueSample {
            name: name.to_owned(),
            waiting,
            completed,
            is_paused,
            ..QueueSample::default()
        };
        let worker = WorkerSample { name: "host-1".to_owned(), concurrency: 100, ..WorkerSample::default() };
        let queues = vec![queue("a.mail", 3, completed, false), queue("b.video", 70, 0, true)];
        let last_minutes = Some(LastMinutes { completed, failed: 2, ran: Some((12, 80)), waited: None });
        TopSample { at, queues, has_more: false, workers: vec![worker], last_minutes }
    }

    fn screen(state: &TopState, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
        terminal.draw(|frame| draw(frame, state)).expect("it is drawn");
        let buffer = terminal.backend().buffer().clone();
        let cells = buffer.content.chunks(usize::from(width));
        cells.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>()).collect()
    }

    fn place(lines: &[String], text: &str) -> usize {
        lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {lines:#?}"))
    }

    #[test]
    fn the_screen_shows_counts_rates_states_and_workers_in_the_order_that_keys_choose() {
        let start = Instant::now();
        let mut state = TopState::new("http://host".to_owned());
        state.update(Ok(sample(start, 100)));
        state.update(Ok(sample(start + Duration::from_secs(2), 150)));
        let lines = screen(&state, 100, 30);
        let mail = place(&lines, "a.mail");
        assert!(lines[mail].contains("25.0") && lines[mail].contains("running"), "{}", lines[mail]);
        assert!(lines[1].contains("waiting 73") && lines[1].contains("done/s 25.0"), "{}", lines[1]);
        assert!(lines[2].contains("done 150  failed 2  ran 12 ms, p99 80 ms  waited -"), "{}", lines[2]);
        assert!(place(&lines, "b.video") < mail, "the longest line first");
        assert!(lines[place(&lines, "b.video")].contains("paused"));
        assert!(lines[place(&lines, "host-1")].contains("0 of 100 jobs"));
        state.press(TopKey::PreviousSort);
        let lines = screen(&state, 100, 30);
        assert!(place(&lines, "a.mail") < place(&lines, "b.video"), "by name");
        state.press(TopKey::Reverse);
        let lines = screen(&state, 100, 30);
        assert!(place(&lines, "b.video") < place(&lines, "a.mail"));
    }

    #[test]
    fn a_failed_look_is_said_and_the_numbers_stay_and_every_size_of_a_screen_works() {
        let mut state = TopState::new("http://host".to_owned());
        state.update(Ok(sample(Instant::now(), 1)));
        state.update(Err(CliError::Unreachable { url: String::new(), problem: "connection refused".to_owned() }));
        state.press(TopKey::Pause);
        let lines = screen(&state, 100, 30);
        assert!(lines[0].contains("connection refused") && lines[0].contains("paused"), "{}", lines[0]);
        place(&lines, "a.mail");
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            screen(&state, width, height);
        }
    }
}
