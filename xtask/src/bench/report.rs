//! Figures as tables: a row for each case, a column for each subject, and how each compares with the first.

use std::fmt::Write;

use super::Figure;

/// One table for each benchmark and unit.
pub fn tables(figures: &[Figure]) -> String {
    let kinds = distinct(figures.iter().map(|figure| (figure.bench.as_str(), figure.unit.as_str())));
    kinds.into_iter().map(|(bench, unit)| table(figures, bench, unit)).collect()
}

fn table(figures: &[Figure], bench: &str, unit: &str) -> String {
    let figures: Vec<&Figure> = figures.iter().filter(|figure| figure.bench == bench && figure.unit == unit).collect();
    let subjects = distinct(figures.iter().map(|figure| figure.subject.as_str()));
    let cases = distinct(figures.iter().map(|figure| figure.case.as_str()));
    let first = cases.iter().map(|case| case.chars().count()).max().unwrap_or(0);
    let mut text = format!("\n{bench}, {unit}\n{:first$}", "");
    for subject in &subjects {
        write!(text, "  {subject:>18}").ok();
    }
    text.push('\n');
    for case in cases {
        write!(text, "{case:first$}").ok();
        let value = |subject: &str| {
            figures.iter().find(|figure| figure.case == case && figure.subject == subject).map(|figure| figure.value)
        };
        let base = subjects.first().and_then(|subject| value(subject));
        for (column, subject) in subjects.iter().enumerate() {
            let cell = value(subject).map_or_else(|| "–".to_owned(), |value| cell(value, base.filter(|_| column > 0)));
            write!(text, "  {cell:>18}").ok();
        }
        text.push('\n');
    }
    text
}

/// The value, and how many times the first column's it is.
fn cell(value: f64, base: Option<f64>) -> String {
    let digits = if value.abs() < 10.0 { 2 } else { 1 };
    match base {
        Some(base) if base > 0.0 => format!("{value:.digits$} (×{:.2})", value / base),
        _ => format!("{value:.digits$}"),
    }
}

/// Each once, in order of appearance.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    items.for_each(|item| {
        if !found.contains(&item) {
            found.push(item);
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(subject: &str, value: f64) -> Figure {
        let [bench, case, unit] = ["coalesce", "tcp 16 flows", "ns/packet"].map(str::to_owned);
        Figure { bench, case, subject: subject.to_owned(), value, unit }
    }

    #[test]
    fn ratios_are_to_the_first_subject() {
        let text = tables(&[figure("netfwd", 20.0), figure("tun-rs", 100.0)]);
        assert!(text.contains("coalesce, ns/packet") && text.contains("100.0 (×5.00)"), "{text}");
    }
}
