//! Text for a page: escaping, and numbers for humans.

use std::fmt::Write as _;

/// Keeps a number and its unit on one line.
const NBSP: char = '\u{a0}';

/// Escapes text for HTML content and quoted attributes. Line ends and tabs become spaces; other control characters, and
/// those that turn the writing direction around, become U+FFFD: they could make a line read as another.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Makes JSON safe inside a `script` element: escapes the characters that could end the element, begin a comment or end
/// a line. JSON has them within strings only, where their escapes mean the same.
pub(super) fn json_for_script(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    safe
}

/// Groups digits: 1234567 -> "1,234,567".
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Writes a number of 1 to 1000 with three significant digits; smaller ones with two decimals, larger ones as integers.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// Writes a duration and its unit: 412 µs, 1.24 ms, 2.05 s.
pub(super) fn duration_us(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{}{NBSP}µs", number(us)),
        us if us < 999_500.0 => format!("{}{NBSP}ms", number(us / 1e3)),
        us => format!("{}{NBSP}s", number(us / 1e6)),
    }
}

/// Writes a length of time: 20.0 s, 3 min 05 s, 2 h 07 min.
pub(super) fn span_s(seconds: f64) -> String {
    if seconds < 99.95 {
        return format!("{seconds:.1}{NBSP}s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{}{NBSP}min {:02}{NBSP}s", whole / 60, whole % 60)
    } else {
        format!("{}{NBSP}h {:02}{NBSP}min", whole / 3600, whole % 3600 / 60)
    }
}

/// Writes a share: 0 %, <0.1 %, 3.4 %, 99.9 %, 100 %. Never rounds up to all or down to nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return format!("0{NBSP}%");
    }
    let share = part as f64 / whole as f64 * 100.0;
    match share {
        _ if part == whole => format!("100{NBSP}%"),
        s if s < 0.1 => format!("<0.1{NBSP}%"),
        s if s > 99.9 => format!(">99.9{NBSP}%"),
        s => format!("{s:.1}{NBSP}%"),
    }
}

/// Writes a size: 812 B, 1.23 MB.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 999.5 => format!("{bytes}{NBSP}B"),
        b if b < 999_500.0 => format!("{}{NBSP}kB", number(b / 1e3)),
        b if b < 999_500_000.0 => format!("{}{NBSP}MB", number(b / 1e6)),
        b => format!("{}{NBSP}GB", number(b / 1e9)),
    }
}

/// Writes a date and time in UTC, "2024-05-01 12:00:03 UTC"; `None` for times before 2001, which are no dates.
///
/// Days to date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(super) fn utc(time_ns: u64) -> Option<String> {
    let seconds = time_ns / 1_000_000_000;
    if seconds < 978_307_200 {
        return None;
    }
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    Some(format!(
        "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_from_text() {
        assert_eq!(
            escape("<b a=\"x\" c='y'>&\0\u{202e}\n"),
            "&lt;b a=&quot;x&quot; c=&#39;y&#39;&gt;&amp;\u{fffd}\u{fffd} "
        );
    }

    #[test]
    fn json_in_a_script_keeps_its_meaning() {
        let hostile = "</script><!-- & \u{2028}\u{2029}";
        let safe = json_for_script(&serde_json::to_string(hostile).unwrap());
        assert!(!safe.contains(['<', '>', '&', '\u{2028}', '\u{2029}']));
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), hostile);
    }

    #[test]
    fn numbers_read_well() {
        let duration_us = |us| super::duration_us(us).replace(NBSP, " ");
        let span_s = |s| super::span_s(s).replace(NBSP, " ");
        let percent = |part, whole| super::percent(part, whole).replace(NBSP, " ");
        let size = |bytes| super::size(bytes).replace(NBSP, " ");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(duration_us(412.0), "412 µs");
        assert_eq!(duration_us(1_240.0), "1.24 ms");
        assert_eq!(duration_us(999_700.0), "1.00 s");
        assert_eq!(span_s(20.0), "20.0 s");
        assert_eq!(span_s(185.2), "3 min 05 s");
        assert_eq!(span_s(7_620.0), "2 h 07 min");
        assert_eq!(percent(1, 100_000), "<0.1 %");
        assert_eq!(percent(99_999, 100_000), ">99.9 %");
        assert_eq!(percent(3, 3), "100 %");
        assert_eq!(percent(0, 0), "0 %");
        assert_eq!(size(1_234_567), "1.23 MB");
    }

    #[test]
    fn dates_agree_with_date_u() {
        let at = |seconds: u64| utc(seconds * 1_000_000_000);
        assert_eq!(
            at(1_709_208_000).as_deref(),
            Some("2024-02-29 12:00:00 UTC")
        );
        assert_eq!(
            at(1_735_689_599).as_deref(),
            Some("2024-12-31 23:59:59 UTC")
        );
        assert_eq!(
            at(4_107_542_400).as_deref(),
            Some("2100-03-01 00:00:00 UTC")
        );
        assert_eq!(at(12), None);
        assert!(utc(u64::MAX).is_some());
    }
}
