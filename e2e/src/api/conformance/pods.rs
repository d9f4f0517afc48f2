//! Pods as the operators make them, and what may be changed in them.

use super::bodies::Edits;
use serde_json::{Value, json};

/// A small one.
pub fn plain(restart: &str) -> Value {
    json!({"restartPolicy": restart, "automountServiceAccountToken": false, "schedulerName": "nobody",
        "containers": [{"name": "main", "image": "example.test/main:1", "ports": [{"containerPort": 5432, "name": "pg"}],
            "env": [{"name": "A", "value": "1"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1024Mi"}},
            "readinessProbe": {"httpGet": {"port": 8080, "path": "/readyz"}, "periodSeconds": 2}}],
        "volumes": [{"name": "tmp", "emptyDir": {}}]})
}

/// With everything that pods of databases and of workers have.
pub fn full(restart: &str) -> Value {
    let probe = |path: &str, period: i64, failures: i64| {
        json!({"httpGet": {"path": path, "port": 9187, "scheme": "HTTP"}, "periodSeconds": period,
            "failureThreshold": failures, "timeoutSeconds": 1})
    };
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let security = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    json!({"restartPolicy": restart, "automountServiceAccountToken": false, "schedulerName": "nobody",
        "enableServiceLinks": false, "shareProcessNamespace": false, "terminationGracePeriodSeconds": 300,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "fsGroup": 999,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [{"name": "install", "image": "example.test/agent:1", "imagePullPolicy": "IfNotPresent",
            "command": ["/agent", "install"], "securityContext": security,
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "volumeMounts": [{"name": "bin", "mountPath": "/bin"}]}],
        "containers": [{"name": "main", "image": "example.test/main", "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/agent", "run"],
            "env": [field("POD_NAME", "metadata.name"), field("POD_UID", "metadata.uid"), {"name": "JOB", "value": "{}"}],
            "ports": [{"name": "pg", "containerPort": 5432, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9187}],
            "startupProbe": probe("/healthz", 1, 300), "readinessProbe": probe("/readyz", 1, 2),
            "livenessProbe": probe("/healthz", 10, 3), "securityContext": security,
            "terminationMessagePolicy": "File",
            "volumeMounts": [{"name": "bin", "mountPath": "/bin"}, {"name": "tls", "mountPath": "/tls", "readOnly": true},
                {"name": "config", "mountPath": "/config"}, {"name": "store", "mountPath": "/store"}]}],
        "volumes": [{"name": "bin", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "tls", "secret": {"secretName": "tls", "defaultMode": 288}},
            {"name": "config", "configMap": {"name": "config"}},
            {"name": "store", "persistentVolumeClaim": {"claimName": "backups"}}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
            "podAffinityTerm": {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}}]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}],
        "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "db", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "pull"}]})
}

/// Changes of a template of pods.
pub fn template() -> Edits {
    let anti = |rule: Value| json!({ "podAntiAffinity": rule });
    let term =
        json!({"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"});
    let limits = json!({"requests": {"cpu": "0.5", "memory": "1Gi"}, "limits": {"cpu": 2}});
    vec![
        (
            "/spec/template/spec/containers",
            vec![
                json!([{"name": "main", "image": "example.test/main:2"}]),
                json!([{"name": "main", "image": "example.test/main:2", "resources": limits}, {"name": "side", "image": "s@sha256:0"}]),
                json!([{"name": "main", "image": "i", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}]),
                json!([{"name": "Main", "image": ""}]),
                json!([{"name": "main", "image": "i:1"}, {"name": "main", "image": "i:2"}]),
                json!([]),
            ],
        ),
        (
            "/spec/template/spec/initContainers",
            vec![
                Value::Null,
                json!([{"name": "other", "image": "o"}]),
                json!([{"name": "main", "image": "o"}, {}]),
            ],
        ),
        (
            "/spec/template/spec/volumes",
            vec![
                Value::Null,
                json!([{"name": "tmp", "emptyDir": {"sizeLimit": "1024Mi"}}, {"name": "bin"}]),
                json!([{"name": "tls", "secret": {"secretName": "tls"}}, {"name": "all", "projected": {"sources": [{"secret": {"name": "s"}}]}}]),
            ],
        ),
        (
            "/spec/template/spec/affinity",
            vec![
                Value::Null,
                anti(json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})),
                anti(json!({})),
            ],
        ),
        ("/spec/template/spec/topologySpreadConstraints", vec![Value::Null, json!([])]),
        (
            "/spec/template/spec/tolerations",
            vec![
                json!([{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}]),
                json!([]),
                Value::Null,
            ],
        ),
        (
            "/spec/template/spec/securityContext",
            vec![Value::Null, json!({}), json!({"runAsUser": 999, "fsGroup": 0})],
        ),
        ("/spec/template/spec/imagePullSecrets", vec![json!([{"name": "a"}, {"name": "pull"}]), Value::Null]),
        ("/spec/template/spec/serviceAccountName", vec![json!("s"), json!("t"), Value::Null]),
        ("/spec/template/spec/priorityClassName", vec![json!("high"), Value::Null]),
        ("/spec/template/spec/enableServiceLinks", vec![json!(true), json!(false), Value::Null]),
    ]
}
