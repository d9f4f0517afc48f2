//! The status of a pod as its kubelet reports it. Pure.

use super::kubelet::{Ended, Run, Stage};
use serde_json::{Value, json};

pub(super) fn status(pod: &Value, run: &Run, now: &str) -> Value {
    let spec = &pod["spec"];
    let list = |field: &str| spec[field].as_array().cloned().unwrap_or_default();
    let (init, containers) = (list("initContainers"), list("containers"));
    let init_statuses: Vec<Value> = init.iter().map(|c| init_status(c, run)).collect();
    let statuses: Vec<Value> =
        containers.iter().map(|c| container_status(c, run, !init.is_empty())).collect();
    let phase = phase(pod, run);
    let over = ["Succeeded", "Failed"].contains(&phase);

    let unready: Vec<&str> =
        statuses.iter().filter(|s| s["ready"] != true).filter_map(|s| s["name"].as_str()).collect();
    let ready = match (over, unready.is_empty()) {
        (true, _) if phase == "Succeeded" => no("PodCompleted", ""),
        (true, _) => no("PodFailed", ""),
        (false, true) => yes(),
        (false, false) => {
            no("ContainersNotReady", &format!("containers with unready status: [{}]", unready.join(" ")))
        }
    };
    let initialized = if init.is_empty() || run.prepared.is_some() {
        yes()
    } else {
        let names: Vec<&str> = init.iter().filter_map(|c| c["name"].as_str()).collect();
        no("ContainersNotInitialized", &format!("containers with incomplete status: [{}]", names.join(" ")))
    };
    let sandbox = matches!(run.stage, Stage::NoImage(_) | Stage::Running(_) | Stage::Down(_, Some(_)));
    let sandbox = if sandbox { yes() } else { no("", "") };

    let before = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions = Vec::new();
    for (kind, mut new) in [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready.clone()),
        ("ContainersReady", ready),
    ] {
        let old = before.iter().find(|c| c["type"] == kind && c["status"] == new["status"]);
        new["type"] = kind.into();
        new["lastTransitionTime"] = old.map_or_else(|| now.into(), |old| old["lastTransitionTime"].clone());
        conditions.push(new);
    }
    let own: Vec<Value> = conditions.iter().map(|c| c["type"].clone()).collect();
    conditions.extend(before.into_iter().filter(|c| !own.contains(&c["type"])));

    let host = format!("192.168.10.{}", run.node);
    let mut status = json!({"phase": phase, "conditions": conditions, "hostIP": host, "hostIPs": [{"ip": host}],
        "startTime": run.started, "containerStatuses": statuses, "initContainerStatuses": init_statuses});
    if !matches!(run.stage, Stage::Waiting | Stage::Never) {
        status["podIP"] = run.ip.as_str().into();
        status["podIPs"] = json!([{"ip": run.ip}]);
    }
    if let Some(class) = pod["status"].get("qosClass") {
        status["qosClass"] = class.clone();
    }
    status
}

fn yes() -> Value {
    json!({"status": "True"})
}

fn no(reason: &str, message: &str) -> Value {
    let mut condition = json!({"status": "False"});
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    condition
}

fn phase(pod: &Value, run: &Run) -> &'static str {
    match &run.stage {
        Stage::Waiting | Stage::NoImage(_) => "Pending",
        Stage::Running(_) | Stage::Down(_, Some(_)) => "Running",
        Stage::Down(ended, None) if ended.code == 0 => "Succeeded",
        Stage::Down(_, None) => "Failed",
        // It never began: it fails only if it is not to come again elsewhere.
        Stage::Never if pod["spec"]["restartPolicy"] == "Never" => "Failed",
        Stage::Never => "Pending",
    }
}

fn terminated(ended: &Ended, name: &str) -> Value {
    let mut state = json!({"exitCode": ended.code, "reason": ended.reason, "startedAt": ended.since,
        "finishedAt": ended.until});
    if !ended.message.is_empty() {
        state["message"] = ended.message.as_str().into();
    }
    if let Some(id) = ended.ids.get(name) {
        state["containerID"] = id.as_str().into();
    }
    json!({ "terminated": state })
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut state = json!({ "reason": reason });
    if !message.is_empty() {
        state["message"] = message.into();
    }
    json!({ "waiting": state })
}

fn not_pulled(image: &str) -> Value {
    waiting(
        "ImagePullBackOff",
        &format!("Back-off pulling image {image:?}: ErrImagePull: {image}: not found"),
    )
}

fn base(container: &Value, ready: bool, started: bool, state: Value, last: Value) -> Value {
    json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
        "started": started, "restartCount": 0, "state": state, "lastState": last})
}

fn init_status(container: &Value, run: &Run) -> Value {
    let name = container["name"].as_str().unwrap_or_default();
    match (&run.prepared, &run.stage) {
        (Some(ended), _) => {
            let mut status = base(container, true, false, terminated(ended, name), json!({}));
            if let Some(id) = ended.ids.get(name) {
                status["containerID"] = id.as_str().into();
            }
            status["imageID"] = container["image"].clone();
            status
        }
        (None, Stage::NoImage(image)) if container["image"] == image.as_str() => {
            base(container, false, false, not_pulled(image), json!({}))
        }
        _ => base(container, false, false, waiting("PodInitializing", ""), json!({})),
    }
}

fn container_status(container: &Value, run: &Run, has_init: bool) -> Value {
    let name = container["name"].as_str().unwrap_or_default();
    let last = run.last.as_ref().map_or_else(|| json!({}), |last| terminated(last, name));
    let idle = waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "");
    let mut status = match &run.stage {
        Stage::Waiting | Stage::Never => return base(container, false, false, idle, last),
        Stage::NoImage(image) if container["image"] == image.as_str() => {
            return base(container, false, false, not_pulled(image), last);
        }
        Stage::NoImage(_) => return base(container, false, false, idle, last),
        Stage::Running(live) => {
            let ready = container.get("readinessProbe").is_none() || live.is_ready();
            let state = json!({"running": {"startedAt": live.since}});
            let mut status = base(container, ready, true, state, last);
            if let Some(id) = run.ids.get(name) {
                status["containerID"] = id.as_str().into();
            }
            status
        }
        Stage::Down(ended, again) => {
            let now = terminated(ended, name);
            // The first restart comes without a word; the kubelet calls only the pauses after it a back-off.
            let mut status = if again.is_some() && run.restarts > 0 {
                let words = format!("back-off restarting failed container={name} pod={}", run.name);
                base(container, false, false, waiting("CrashLoopBackOff", &words), now)
            } else {
                base(container, false, false, now, last)
            };
            if let Some(id) = ended.ids.get(name) {
                status["containerID"] = id.as_str().into();
            }
            status
        }
    };
    status["restartCount"] = run.restarts.into();
    status["imageID"] = container["image"].clone();
    status
}
