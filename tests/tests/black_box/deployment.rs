//! The files that operators deploy with are accepted by the tools that read them, and name only metrics that the server has.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use vkog_tests::workspace;

use super::dist::said;
use super::reference::{metrics, read};

const ALERTS: &str = "dist/prometheus/alerts.yml";
const ALERTS_TEST: &str = "dist/prometheus/alerts.test.yml";
const DASHBOARD: &str = "dist/grafana/vkog.json";
const MANIFEST: &str = "dist/kubernetes/vkog.yaml";
const ETCD_MANIFEST: &str = "dist/kubernetes/vkog-etcd.yaml";

fn has_promtool() -> bool {
    let has = Command::new("promtool").arg("--version").output().is_ok();
    if !has {
        println!("skipped: promtool is not installed (apt-get install prometheus)");
    }
    has
}

/// Returns all strings under this key, at any depth.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                found.extend(field.as_str().filter(|_| name == key));
                strings(field, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, key, found)),
        _ => {}
    }
}

#[test]
fn each_metric_of_the_alerts_and_the_dashboard_exists() {
    let metrics = metrics();
    for file in [ALERTS, ALERTS_TEST, DASHBOARD] {
        let text = read(file);
        let words: BTreeSet<&str> =
            text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
        let named: Vec<_> = words.into_iter().filter(|word| word.starts_with("vkog_")).collect();
        assert!(named.len() >= 8, "{file} names {named:?}");
        for word in named {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(metrics.contains_key(base), "{file} names {word}, which the server does not have");
        }
    }
}

#[test]
fn each_alert_fires_when_it_should_and_has_an_instruction() {
    let guide = read("docs/how-to/monitoring.md");
    let rules = read(ALERTS);
    let tests = read(ALERTS_TEST);
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 11, "{alerts:?}");
    for alert in alerts {
        assert!(guide.contains(alert), "docs/how-to/monitoring.md says nothing about {alert}");
        let fires = tests.contains(&format!("alertname: {alert}\n"));
        let is_silent = tests.contains(&format!("alertname: {alert}, exp_alerts: []"));
        assert!(fires && is_silent, "{ALERTS_TEST} does not test {alert} in both ways");
    }
    if has_promtool() {
        let folder = workspace().join("dist/prometheus");
        said(Command::new("promtool").args(["check", "rules", "alerts.yml"]).current_dir(&folder));
        said(Command::new("promtool").args(["test", "rules", "alerts.test.yml"]).current_dir(&folder));
    }
}

#[test]
fn each_panel_of_the_dashboard_has_a_query_that_prometheus_parses() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have the same id");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{panel}");
    }
    let mut queries = Vec::new();
    strings(&dashboard, "expr", &mut queries);
    if !has_promtool() {
        return;
    }
    // promtool parses rules. Grafana replaces the variables.
    let rules: Vec<Value> = queries
        .iter()
        .map(|query| query.replace("$__rate_interval", "5m").replace("$instance", ".*"))
        .map(|query| serde_json::json!({ "record": "query", "expr": query }))
        .collect();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("rules.json");
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(&file, rules.to_string()).expect("it is ours");
    let parsed = said(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(&file));
    assert!(parsed.contains(&format!("{} rules", queries.len())), "{parsed}");
}

#[test]
fn the_dashboard_has_only_fields_and_values_of_grafana() {
    let has = Command::new("python3").args(["-c", "import grafana_foundation_sdk"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return println!("skipped: pip install 'grafana-foundation-sdk==1769699379!11.6.0'");
    }
    let folder = workspace();
    let check =
        Command::new("python3").args([folder.join("tests/checks/dashboard.py"), folder.join(DASHBOARD)]).output();
    let check = check.expect("python3 runs");
    let found = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && found.is_empty(), "{found}{}", String::from_utf8_lossy(&check.stderr));
}

/// Returns the documents of a manifest that follow the schema of Kubernetes. `None` if nothing can check it.
fn documents(manifest: &str) -> Option<Vec<Value>> {
    let check = "import json, sys, yaml, kubernetes_validate\n\
        documents = list(yaml.safe_load_all(open(sys.argv[1])))\n\
        for document in documents:\n\
        \x20   for version in ('1.29', kubernetes_validate.latest_version()):\n\
        \x20       kubernetes_validate.validate(document, version, strict=True)\n\
        print(json.dumps(documents))";
    let has = Command::new("python3").args(["-c", "import yaml, kubernetes_validate"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("skipped: pip install kubernetes-validate");
        return None;
    }
    let said = said(Command::new("python3").args(["-c", check]).arg(workspace().join(manifest)));
    Some(serde_json::from_str(&said).expect("a list"))
}

/// Returns the specification of the pods of the document of this kind. Each container of them is restricted.
fn restricted_pod<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let document = documents.iter().find(|document| document["kind"] == kind);
    let pod = &document.unwrap_or_else(|| panic!("no {kind}"))["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let containers = [&pod["containers"], &pod["initContainers"]];
    for container in containers.into_iter().filter_map(Value::as_array).flatten() {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{container}");
    }
    pod
}

#[test]
fn the_manifest_with_etcd_follows_the_schema_and_names_each_member() {
    let Some(documents) = documents(ETCD_MANIFEST) else { return };
    let members = documents.iter().find(|document| document["kind"] == "StatefulSet").expect("etcd");
    let etcd = &restricted_pod(&documents, "StatefulSet")["containers"][0];
    let server = &restricted_pod(&documents, "Deployment")["containers"][0];
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(server[probe]["httpGet"]["path"], path);
    }
    let (name, service) = (&members["metadata"]["name"], &members["spec"]["serviceName"]);
    let (name, service) = (name.as_str().expect("a name"), service.as_str().expect("a name"));
    let count = members["spec"]["replicas"].as_u64().expect("a number");
    let members = |each: &dyn Fn(u64) -> String| (0..count).map(each).collect::<Vec<_>>().join(",");
    let variable = |container: &Value, name: &str| {
        let all = container["env"].as_array().expect("a list");
        all.iter().find(|variable| variable["name"] == *name).map(|variable| variable["value"].clone())
    };
    let peers = members(&|member| format!("{name}-{member}=http://{name}-{member}.{service}:2380"));
    assert_eq!(variable(etcd, "ETCD_INITIAL_CLUSTER"), Some(peers.into()));
    let store = format!("etcd://{}/vkog", members(&|member| format!("{name}-{member}.{service}:2379")));
    assert_eq!(variable(server, "VKOG_STORE"), Some(store.into()));
    // The image names a file.
    assert_eq!(variable(server, "VKOG_FILE"), Some("".into()));
}

#[test]
fn the_service_of_each_manifest_selects_only_its_own_pods() {
    let (Some(single), Some(shared)) = (documents(MANIFEST), documents(ETCD_MANIFEST)) else { return };
    let names = |documents: &[Value]| -> BTreeSet<String> {
        documents.iter().map(|document| format!("{}/{}", document["kind"], document["metadata"]["name"])).collect()
    };
    let (single_names, shared_names) = (names(&single), names(&shared));
    assert!(single_names.is_disjoint(&shared_names), "{single_names:?} and {shared_names:?}");
    let documents: Vec<&Value> = single.iter().chain(&shared).collect();
    let services = documents.iter().filter(|document| document["kind"] == "Service");
    let selectors: Vec<&Value> = services.map(|service| &service["spec"]["selector"]).collect();
    assert_eq!(selectors.len(), 3, "{selectors:?}");
    for selector in selectors {
        let selected =
            documents.iter().filter(|document| &document["spec"]["template"]["metadata"]["labels"] == selector);
        assert_eq!(selected.count(), 1, "{selector}");
    }
}

#[test]
fn the_manifest_follows_the_schema_of_kubernetes_and_restricts_the_server() {
    let Some(documents) = documents(MANIFEST) else { return };
    let set = documents.iter().find(|document| document["kind"] == "StatefulSet");
    let pod = restricted_pod(&documents, "StatefulSet");
    let server = &pod["containers"][0];
    // The root is read-only: each folder that the server writes is mounted, and the init container makes those that hold no data.
    let mounts = server["volumeMounts"].as_array().expect("a list");
    let script = pod["initContainers"][0]["args"][0].as_str().expect("a script");
    for (written, folder) in [("/tmp", "tmp"), ("/run/vkog", "run")] {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == written);
        let mount = mount.unwrap_or_else(|| panic!("the server cannot write {written}"));
        assert_eq!(
            (&mount["name"], &mount["subPath"], &mount["readOnly"]),
            (&"work".into(), &folder.into(), &Value::Null)
        );
        assert!(script.contains(&format!(" /work/{folder}\n")), "no {folder} in {script}");
    }
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(server[probe]["httpGet"]["path"], path);
    }
    assert_eq!(set.expect("a StatefulSet")["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
    // The image and the manifest agree on the user.
    let image = std::fs::read_to_string(workspace().join("Dockerfile")).expect("there is one");
    assert!(image.contains(&format!("USER {0}:{0}", pod["securityContext"]["runAsUser"])), "another user");
}
