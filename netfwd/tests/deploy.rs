//! What `deploy/` offers is true: the examples are valid, and alerts and dashboard name metrics that exist.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use netfwd::config::Config;
use netfwd::control::metrics::Family;
use netfwd_common::reason::DropReason;
use prometheus::proto::MetricType;

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn text(file: &str) -> String {
    fs::read_to_string(deploy(file)).expect("a file of the repository")
}

/// Everything in `text` that looks like one of our metrics.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("netfwd_")).collect()
}

fn exported() -> BTreeSet<String> {
    let names = Family::ALL.iter().flat_map(|family| match family.kind() {
        MetricType::HISTOGRAM => {
            ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", family.name())).to_vec()
        }
        _ => vec![family.name().to_owned()],
    });
    names.collect()
}

#[test]
fn the_examples_are_valid() {
    let directory = std::env::temp_dir().join(format!("netfwd-deploy-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("the temporary directory is writable");
    // The keys that the examples name beside them.
    for (name, text) in
        [("wg0.key", "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo="), ("wg0-branch.psk", &"A".repeat(43))]
    {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(directory.join(name))
            .expect("new");
        file.write_all(format!("{text:=<44}\n").as_bytes()).expect("written");
    }
    let mut kinds = BTreeSet::new();
    for entry in fs::read_dir(deploy("examples")).expect("a directory of the repository") {
        let file = entry.expect("readable").path();
        let text = fs::read_to_string(&file).expect("a text");
        match Config::parse(&text, &directory.join(file.file_name().expect("a name"))) {
            Ok(config) => kinds.extend(config.tunnels.iter().map(|tunnel| tunnel.kind().as_str())),
            Err(errors) => panic!("{errors}"),
        }
    }
    fs::remove_dir_all(&directory).expect("ours");
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["vxlan", "vxlan-gpe", "wireguard"], "an example for each kind");
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let exported = exported();
    for file in ["alerts.yml", "dashboard.json"] {
        let text = text(file);
        let names = metric_names(&text);
        assert!(names.len() > 5, "{file}: {names:?}");
        for name in names {
            assert!(exported.contains(name), "{file}: {name} is not exported");
        }
    }
}

#[test]
fn alerts_name_drop_reasons_that_exist() {
    let text = text("alerts.yml");
    for reason in ["partial_checksum", "unknown_vni", "remote_not_allowed", "inner_source_denied"] {
        assert!(text.contains(reason) && DropReason::ALL.iter().any(|known| known.as_str() == reason), "{reason}");
    }
}

#[test]
fn the_dashboard_is_json() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("dashboard.json")).expect("JSON");
    assert_eq!(dashboard["panels"].as_array().map(Vec::len), Some(8));
}

#[test]
fn promtool_accepts_the_alerts() {
    let output = Command::new("promtool")
        .args(["check", "rules", "--lint-fatal"])
        .arg(deploy("alerts.yml"))
        .output()
        .expect("promtool must be installed to run this test (Debian: prometheus)");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Has promtool say for which interfaces an alert fires after ten minutes of these series, constant as they are.
fn assert_fires(alert: &str, series: &[&str], interfaces: &[&str]) {
    let directory = std::env::temp_dir().join(format!("netfwd-alerts-{}-{alert}", std::process::id()));
    fs::create_dir_all(&directory).expect("the temporary directory is writable");
    let rules = deploy("alerts.yml").canonicalize().expect("a file of the repository");
    let series = series.iter().map(|series| serde_json::json!({ "series": series, "values": "1x20" }));
    let samples = interfaces
        .iter()
        .map(|interface| serde_json::json!({ "labels": format!("{{interface=\"{interface}\"}}"), "value": 1 }));
    // What is JSON is YAML.
    let test = serde_json::json!({
        "rule_files": [rules],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": series.collect::<Vec<_>>(),
            "promql_expr_test": [{
                "expr": format!("sum by (interface) (ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}})"),
                "eval_time": "10m",
                "exp_samples": samples.collect::<Vec<_>>(),
            }],
        }],
    });
    let file = directory.join("test.yml");
    fs::write(&file, test.to_string()).expect("written");
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().expect("promtool (prometheus)");
    fs::remove_dir_all(&directory).expect("ours");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

#[test]
fn an_underlay_without_xdp_is_an_alert_unless_it_is_meant_to_have_none() {
    let series = [
        r#"netfwd_underlay_info{instance="gw",interface="lost0",xdp="auto"}"#,
        r#"netfwd_xsk_mode_info{instance="gw",interface="lost0",queue="0",mode="off"}"#,
        r#"netfwd_xsk_mode_info{instance="gw",interface="lost0",queue="1",mode="off"}"#,
        r#"netfwd_underlay_info{instance="gw",interface="fast0",xdp="native"}"#,
        r#"netfwd_xsk_mode_info{instance="gw",interface="fast0",queue="0",mode="copy"}"#,
        r#"netfwd_underlay_info{instance="gw",interface="slow0",xdp="off"}"#,
        r#"netfwd_xsk_mode_info{instance="gw",interface="slow0",queue="0",mode="off"}"#,
    ];
    assert_fires("NetfwdUnderlayWithoutXdp", &series, &["lost0"]);
}
