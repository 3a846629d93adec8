//! What operators do: check who uses what, take over volumes, and try what nobody may get.

use serde_json::{Value, json};
use testkit::certs;
use testkit::error::{Result, Trouble, ensure};
use testkit::kube::{LIMIT, claim, pod, until};
use testkit::tool;

use crate::rig::{CLASS, Rig};

fn says(what: &str, text: &str, words: &[&str]) -> Result<()> {
    words.iter().try_for_each(|word| ensure(text.contains(word), || format!("{what} does not say {word:?}: {text}")))
}

#[test]
fn plugin_and_machine_say_who_holds_a_claim() -> Result<()> {
    let rig = Rig::new("who")?;
    rig.cluster.apply(&[claim("data", CLASS, "64Mi"), pod("app", &["data"])])?;
    rig.cluster.wait_ready(&["app"])?;
    let (node, volume) = (rig.node_of("app")?, rig.volume("data")?);
    let who = rig.cluster.plugin(&["who", "who/data"])?;
    says("who", &who, &[&volume, &format!("attached  to node {node} since 2"), &format!("by pod app on node {node}, Running")])?;
    let list = rig.cluster.plugin(&["list"])?;
    let line = list.lines().find(|line| line.starts_with("who/data ")).unwrap_or_default();
    says("list", line, &[&volume, "64Mi", &node, "app"])?;
    let pools = rig.cluster.plugin(&["pools"])?;
    for node in rig.cluster.nodes()? {
        ensure(pools.lines().any(|line| line.split_whitespace().take(3).eq([node.as_str(), "thin", "lvm-csi"])), || {
            format!("`pools` has no line for {node}: {pools}")
        })?;
    }
    // The node itself reports the same, without the API server.
    let who = rig.cluster.on_machine(&node, &["who", &volume])?;
    says(
        "who on the node",
        &who,
        &[&format!("attached  to node {node} since 2"), ", staged", "used at   /var/lib/kubelet/pods/"],
    )?;
    let list = rig.cluster.on_machine(&node, &["list"])?;
    let line = list.lines().find(|line| line.starts_with(&format!("lvm-csi/{volume} "))).unwrap_or_default();
    says("list on the node", line, &["volume", "thin", "ext4", "staged", &node])?;
    rig.cluster.delete(&["pod/app"])?;
    until("the claim to have no attachment and no pod", || {
        let who = rig.cluster.plugin(&["who", "who/data"])?;
        Ok((who.contains("to no node") && who.contains("by no pod")).then_some(()))
    })?;
    rig.finish()
}

#[test]
fn an_lv_made_by_hand_becomes_a_claim() -> Result<()> {
    let rig = Rig::new("adopt")?;
    rig.cluster.on(
        "n1",
        "lvcreate --quiet --virtualsize 64M --thinpool thin --name legacy lvm-csi; mkfs.ext4 -q /dev/lvm-csi/legacy; \
         mount /dev/lvm-csi/legacy /mnt; echo kept >/mnt/file; umount /mnt; lvchange --activate n lvm-csi/legacy",
    )?;
    let import = |more: &[&str]| {
        let words = ["import", "n1", "--vg=lvm-csi", "--lv=legacy", "--filesystem=ext4", "--claim=adopt/legacy"];
        rig.cluster.plugin(&[&words, more].concat())
    };
    says("a dry run", &import(&[])?, &["kind: PersistentVolume", "--apply"])?;
    let found = rig.cluster.volumes("n1")?;
    ensure(!found.contains(&"legacy".to_owned()), || format!("the dry run imported the LV: {found:?}"))?;
    rig.cluster.apply_text(&import(&["--apply"])?)?;
    rig.cluster.apply(&[pod("app", &["legacy"])])?;
    rig.cluster.wait_ready(&["app"])?;
    let found = rig.cluster.exec("app", "cat /legacy/file")?;
    ensure(found == "kept", || format!("the file contains {found:?}"))?;
    let volume = rig.volume("legacy")?;
    rig.reclaim(&volume, "Delete")?;
    rig.finish()
}

#[test]
fn nobody_gets_the_certificate_of_another_nodes_agent() -> Result<()> {
    let rig = Rig::new("certificates")?;
    let request = |name: &str, of: &str, user: &[&str]| {
        let pem = tool::feed(LIMIT, tool::command("base64").arg("--wrap=0"), &certs::request(&certs::agent("lvm-csi.dev", of))?)?;
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"signerName": "lvm-csi.dev/agent", "request": pem, "usages": ["digital signature", "server auth"]},
        });
        rig.cluster.create_as(user, &object)?;
        let name = format!("csr/{name}");
        let answer = until(&format!("an answer to {name}"), || {
            let found = rig.cluster.get(&[&name])?;
            Ok(found["status"]["conditions"].as_array().and_then(|all| all.first()).cloned())
        })?;
        rig.cluster.delete(&[&name])?;
        Ok::<Value, testkit::Trouble>(answer)
    };
    let agent = "--as=system:serviceaccount:lvm-csi:lvm-csi-node";
    let on = |node: &str| format!("--as-user-extra=authentication.kubernetes.io/node-name={node}");
    for (name, of, user, word) in [
        ("another-nodes", "n2", vec![agent.to_owned(), on("n1")], "may have n1.node.lvm-csi.dev only"),
        ("no-nodes", "n1", vec![agent.to_owned()], "not bound to a pod on a node"),
        ("no-agents", "n1", vec![], "only system:serviceaccount:lvm-csi:lvm-csi-node may ask"),
    ] {
        let user: Vec<&str> = user.iter().map(String::as_str).collect();
        let answer = request(name, of, &user)?;
        ensure(answer["type"] == "Denied" || answer["type"] == "Failed", || format!("{name}: {answer}"))?;
        says(name, &answer.to_string(), &[word])?;
    }
    // A correct request is granted, so the refusals above are not for every request.
    let answer = request("its-own", "n1", &[agent, &on("n1")])?;
    ensure(answer["type"] == "Approved", || format!("the node's own request: {answer}"))?;
    rig.finish()
}

#[test]
fn a_class_that_cannot_be_changed_says_what_to_do() -> Result<()> {
    let rig = Rig::new("classes")?;
    let same = "storageClasses[0].name=lvm-csi";
    for (setting, field) in [
        ("storageClasses[0].reclaimPolicy=Retain", "another reclaimPolicy"),
        ("storageClasses[0].pool=thin", "another pool or fsType"),
        ("storageClasses[0].mountOptions[0]=noatime", "another mountOptions"),
    ] {
        let said = rig.cluster.refused_upgrade(&[same, setting])?;
        says(setting, &said, &["StorageClass", field, "kubectl delete storageclass lvm-csi"])?;
    }
    rig.finish()
}

#[test]
fn metrics_are_for_accounts_with_the_right() -> Result<()> {
    let rig = Rig::new("metrics")?;
    let reader = "--serviceaccount=metrics:reader";
    for account in ["reader", "other"] {
        rig.cluster.kubectl(&["create", "serviceaccount", account])?;
    }
    rig.cluster.kubectl(&["create", "clusterrolebinding", "metrics-test", "--clusterrole=lvm-csi-metrics-reader", reader])?;
    let token = |account: &str| rig.cluster.kubectl(&["create", "token", account]);
    let (reader, other) = (token("reader")?, token("other")?);
    let pods = rig.cluster.get(&["pods", "--namespace=lvm-csi", "--selector=app.kubernetes.io/instance=lvm-csi"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    ensure(pods.len() > 2, || format!("too few pods of nodes and controllers: {pods:?}"))?;
    for pod in pods {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (node, ip) = (text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]));
        // Returns the first line of the answer and one of the metrics.
        let scrape = |token: &str| {
            let header = format!(
                "GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n"
            );
            let connect = format!("openssl s_client -quiet -connect {ip}:9808 2>/dev/null");
            rig.cluster.on(&node, &format!("printf '{header}' | {connect} | grep -aE '^HTTP|^lvm_csi_operations ' || true"))
        };
        // A new permission may take effect a moment later.
        let mut answer = String::new();
        let given = until(&format!("{} to give its metrics", pod["metadata"]["name"]), || {
            answer = scrape(&reader)?;
            Ok((answer.starts_with("HTTP/1.1 200 ") && answer.contains("lvm_csi_operations ")).then_some(()))
        });
        given.map_err(|trouble| Trouble::wrong(format!("{trouble}; the last answer is {answer:?}")))?;
        for (token, code) in [(other.as_str(), "403"), ("forged", "401"), ("", "401")] {
            let answer = scrape(token)?;
            ensure(answer.starts_with(&format!("HTTP/1.1 {code} ")) && !answer.contains("lvm_csi"), || {
                format!("not {code}: {answer}")
            })?;
        }
    }
    rig.cluster.delete(&["clusterrolebinding/metrics-test"])?;
    rig.finish()
}
