//! Tables that fit the terminal: the last column gives way.

use std::io::IsTerminal;

/// The least that is left of the last column.
const NARROWEST: usize = 20;

/// Columns of standard output's terminal; `None` where there is none, then nothing is cut.
pub(crate) fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// Lines of a table; the last column is cut where the line would be longer than `width`.
pub(crate) fn render(head: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let length = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().map(|row| length(&row[column]));
            cells
                .chain([length(head[column])])
                .max()
                .unwrap_or_default()
        })
        .collect();
    let last = head.len().saturating_sub(1);
    let before: usize = widths[..last].iter().map(|width| width + 2).sum();
    let room = width.map(|width| width.saturating_sub(before).max(NARROWEST));
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column == last {
                line.push_str(&cut(cell, room));
            } else {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', widths[column] - length(cell) + 2));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cut(cell: &str, room: Option<usize>) -> String {
    match room {
        Some(room) if cell.chars().count() > room => cell
            .chars()
            .take(room.saturating_sub(1))
            .chain(['…'])
            .collect(),
        _ => cell.to_owned(),
    }
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_gives_way_to_the_terminal() {
        let rows = vec![
            vec!["a".to_owned(), "x".repeat(60)],
            vec!["bcd".to_owned(), "y".to_owned()],
        ];
        let wide = render(&["NAME", "REASON"], &rows, None);
        assert!(wide.contains(&"x".repeat(60)));
        let narrow = render(&["NAME", "REASON"], &rows, Some(40));
        assert_eq!(
            narrow.lines().map(|line| line.chars().count()).max(),
            Some(40),
            "{narrow}"
        );
        assert!(narrow.starts_with("NAME  REASON\n"), "{narrow}");
        assert!(narrow.ends_with("bcd   y\n"), "{narrow}");
    }

    #[test]
    fn bytes_are_printed_in_units_of_1024() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(5 << 30), "5.00 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
