//! The Prometheus text format, as far as a test reads it.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Reads a scrape; comments and lines that make no sense are left out.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(parse_line).collect() }
    }

    /// Every sample of that name.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// Is there a sample of that name?
    pub fn has(&self, name: &str) -> bool {
        self.samples(name).next().is_some()
    }

    /// The sum over the samples of that name which carry all of these labels, 0 when there are none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.samples(name).filter(carries).map(|sample| sample.value).sum::<f64>() + 0.0
    }

    /// The sum over all samples of that name.
    pub fn sum(&self, name: &str) -> f64 {
        self.metric(name, &[])
    }

    /// How much [`Metrics::metric`] grew since an earlier scrape.
    pub fn growth(&self, before: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metric(name, labels) - before.metric(name, labels)
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, labels, value) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = parse_labels(rest)?;
            (name, labels, value)
        }
        None => line.split_once(' ').map(|(name, value)| (name, BTreeMap::new(), value))?,
    };
    // A time stamp may follow the value.
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.trim().to_owned(), labels, value })
}

/// Reads `key="value",…}` and returns what follows the brace.
fn parse_labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = parse_quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after;
    }
}

/// Reads up to the closing quote; backslash escapes as the format defines them.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = r#"# HELP x y
netfwd_drops_total{direction="ingress",reason="bad \"sum\""} 3
netfwd_drops_total{direction="egress",reason="a,b}"} 4 1700000000
up 1
"#;

    #[test]
    fn labels_select_and_values_add_up() {
        let metrics = Metrics::parse(SCRAPE);
        assert_eq!(metrics.metric("netfwd_drops_total", &[("direction", "ingress")]), 3.0);
        assert_eq!(metrics.metric("netfwd_drops_total", &[("reason", "bad \"sum\"")]), 3.0);
        assert_eq!(metrics.metric("netfwd_drops_total", &[("reason", "a,b}")]), 4.0);
        assert_eq!(metrics.sum("netfwd_drops_total"), 7.0);
        assert_eq!(metrics.sum("up"), 1.0);
        assert_eq!(metrics.sum("absent"), 0.0);
        assert!(!metrics.has("absent"));
    }
}
