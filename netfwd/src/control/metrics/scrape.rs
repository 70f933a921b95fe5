//! One scrape: samples by family and labels, added up over workers, interfaces and queues.

use std::collections::BTreeMap;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::family::Family;

/// Samples on their way to the text format. Adding to a sample that exists sums.
#[derive(Debug)]
pub struct Scrape {
    samples: Vec<BTreeMap<Vec<String>, f64>>,
    segments: Segments,
}

/// The histogram `netfwd_gro_frame_segments`, not cumulative.
#[derive(Debug, Default)]
struct Segments {
    buckets: Vec<(u64, u64)>,
    beyond: u64,
    sum: u64,
}

impl Default for Scrape {
    fn default() -> Self {
        Self { samples: Family::ALL.iter().map(|_| BTreeMap::new()).collect(), segments: Segments::default() }
    }
}

impl Scrape {
    /// Adds to a sample; `labels` are in the family's order. Adding 0 makes the series exist.
    pub fn add(&mut self, family: Family, labels: &[&str], value: u64) {
        self.add_float(family, labels, value as f64);
    }

    /// [`add`](Self::add) for seconds.
    pub fn add_float(&mut self, family: Family, labels: &[&str], value: f64) {
        debug_assert_eq!(labels.len(), family.labels().len(), "{}", family.name());
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        *self.samples[family as usize].entry(labels).or_default() += value;
    }

    /// Adds a histogram of frame sizes: counts by upper bound, the count beyond the last, and the sum.
    pub fn add_segments(&mut self, buckets: impl Iterator<Item = (u64, u64)>, beyond: u64, sum: u64) {
        let Segments { buckets: totals, beyond: total_beyond, sum: total_sum } = &mut self.segments;
        for (index, (bound, count)) in buckets.enumerate() {
            match totals.get_mut(index) {
                Some(total) => total.1 += count,
                None => totals.push((bound, count)),
            }
        }
        *total_beyond += beyond;
        *total_sum += sum;
    }

    /// The families that have samples.
    pub fn into_families(self) -> Vec<MetricFamily> {
        let segments = self.segments.metric();
        let metrics = |family: Family, samples: BTreeMap<Vec<String>, f64>| match family.kind() {
            MetricType::HISTOGRAM => vec![segments.clone()],
            kind => samples.iter().map(|(labels, value)| sample(kind, family.labels(), labels, *value)).collect(),
        };
        Family::ALL
            .iter()
            .zip(self.samples)
            .map(|(&family, samples)| family_of(family, metrics(family, samples)))
            .collect()
    }
}

fn family_of(family: Family, metrics: Vec<Metric>) -> MetricFamily {
    let mut output = MetricFamily::default();
    output.set_name(family.name().to_owned());
    output.set_help(family.help().to_owned());
    output.set_field_type(family.kind());
    output.set_metric(metrics);
    output
}

fn sample(kind: MetricType, names: &[&str], values: &[String], value: f64) -> Metric {
    let mut metric = Metric::from_label(names.iter().zip(values).map(|(name, value)| label(name, value)).collect());
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

impl Segments {
    /// The histogram with cumulative buckets; the encoder adds the one without a bound.
    fn metric(&self) -> Metric {
        let mut cumulative = 0;
        let buckets = self.buckets.iter().map(|&(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound as f64);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(cumulative + self.beyond);
        histogram.set_sample_sum(self.sum as f64);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        metric
    }
}
