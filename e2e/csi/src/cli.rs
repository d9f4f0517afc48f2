//! The command line.

use crate::faults::Order;
use std::path::PathBuf;

/// How the program is used.
pub const HELP: &str = "\
holdfast-devcsi serve --folder FOLDER --pool FILE --pool-size BYTES --node NAME=ZONE=KUBELET_ROOT...
                      (--kubeconfig FILE | --no-provisioner)
    Serves volumes: the controller at FOLDER/controller.sock, each node at the place where its kubelet looks.
    FILE is made if it is not there. With --no-provisioner nothing talks to Kubernetes.

holdfast-devcsi fault ORDER --folder FOLDER
    fail CALL N [MESSAGE]       the next N calls of this name fail (Unavailable)
    delay CALL SECONDS N        the next N calls of this name begin later
    detach VOLUME               the device goes away: I/O errors at once; the next staging attaches it again
    read-only VOLUME [off]      takes no writes. Pods that have it get I/O errors, as XFS gives them when its log cannot be
                                written, which is what clouds show; pods that start later can only read
    lose VOLUME                 as detach, and the content is gone for good
    slow VOLUME BYTES           so many bytes a second; 0 is as fast as the class says
    clear                       ends all of these but detach and lose
    list                        tells what there is
    CALL is a call of the Container Storage Interface, such as NodeStageVolume; VOLUME is NAMESPACE/CLAIM, the name of
    a PersistentVolume, or a volume's id.
";

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, also its id.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// The folder of its kubelet.
    pub kubelet: PathBuf,
}

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The folder of the controller's socket, the admin socket, and all mounts.
    pub folder: PathBuf,
    /// The pool's file.
    pub pool: PathBuf,
    /// Its size if it has to be made, bytes.
    pub pool_size: u64,
    /// How to reach Kubernetes.
    pub kubeconfig: Option<PathBuf>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Whether PersistentVolumeClaims are served.
    pub provisioner: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Print the help.
    Help,
    /// Serve.
    Serve(Options),
    /// Tell the process that serves in this folder to do something.
    Fault(PathBuf, Order),
}

/// Reads the arguments after the program's name; an error says what is wrong with them.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    match arguments.next().as_deref() {
        None | Some("--help" | "-h" | "help") => Ok(Command::Help),
        Some("serve") => serve(arguments).map(Command::Serve),
        Some("fault") => fault(arguments),
        Some(other) => Err(format!("{other} is no command; there are serve and fault")),
    }
}

fn serve(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut folder, mut pool, mut pool_size, mut kubeconfig) = (None, None, None, None);
    let (mut nodes, mut provisioner) = (Vec::new(), true);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--folder" => folder = Some(value()?.into()),
            "--pool" => pool = Some(value()?.into()),
            "--pool-size" => {
                let text = value()?;
                pool_size =
                    Some(text.parse().map_err(|_| format!("--pool-size {text} is no number of bytes"))?);
            }
            "--kubeconfig" => kubeconfig = Some(value()?.into()),
            "--node" => nodes.push(node(&value()?)?),
            "--no-provisioner" => provisioner = false,
            other => return Err(format!("serve does not know {other}")),
        }
    }
    if provisioner && kubeconfig.is_none() {
        return Err("--kubeconfig is missing; --no-provisioner serves without Kubernetes".into());
    }
    Ok(Options {
        folder: folder.ok_or("--folder is missing")?,
        pool: pool.ok_or("--pool is missing")?,
        pool_size: pool_size.ok_or("--pool-size is missing")?,
        kubeconfig,
        nodes: if nodes.is_empty() { return Err("--node is missing".into()) } else { nodes },
        provisioner,
    })
}

fn node(text: &str) -> Result<Node, String> {
    let mut parts = text.splitn(3, '=');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(zone), Some(root)) if !name.is_empty() && !zone.is_empty() && !root.is_empty() => {
            Ok(Node { name: name.into(), zone: zone.into(), kubelet: root.into() })
        }
        _ => Err(format!("--node {text} is not NAME=ZONE=KUBELET_ROOT")),
    }
}

fn fault(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let (mut folder, mut words) = (None, Vec::new());
    let mut arguments = arguments.peekable();
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--folder" => folder = Some(arguments.next().ok_or("--folder needs a value")?),
            "--help" | "-h" => return Ok(Command::Help),
            _ => words.push(word),
        }
    }
    let order = order(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(Command::Fault(folder.ok_or("--folder is missing")?.into(), order))
}

fn order(words: &[&str]) -> Result<Order, String> {
    fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("{text} is no number of {what}"))
    }
    let volume = |volume: &&str| (*volume).to_string();
    Ok(match words {
        ["fail", kind, count] => Order::Fail {
            kind: volume(kind),
            count: number(count, "calls")?,
            message: "the storage does not answer (a fault on demand)".into(),
        },
        ["fail", kind, count, message @ ..] => {
            Order::Fail { kind: volume(kind), count: number(count, "calls")?, message: message.join(" ") }
        }
        ["delay", kind, seconds, count] => Order::Delay {
            kind: volume(kind),
            seconds: number(seconds, "seconds")?,
            count: number(count, "calls")?,
        },
        ["detach", name] => Order::Detach { volume: volume(name) },
        ["read-only", name] => Order::ReadOnly { volume: volume(name), off: false },
        ["read-only", name, "off"] => Order::ReadOnly { volume: volume(name), off: true },
        ["lose", name] => Order::Lose { volume: volume(name) },
        ["slow", name, bytes] => {
            Order::Slow { volume: volume(name), bytes: number(bytes, "bytes a second")? }
        }
        ["clear"] => Order::Clear,
        ["list"] => Order::List,
        _ => return Err(format!("fault {}: no such order; --help lists them", words.join(" "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, String> {
        parse(line.split(' ').map(String::from))
    }

    #[test]
    fn serve_has_its_options() {
        let command = of(
            "serve --folder /r/csi --pool /r/p.img --pool-size 4096 --kubeconfig /k --node amber=west=/n/1 \
             --node beryl=east=/n/2",
        )
        .unwrap();
        let Command::Serve(options) = command else { panic!("{command:?}") };
        assert_eq!(
            options.nodes[1],
            Node { name: "beryl".into(), zone: "east".into(), kubelet: "/n/2".into() }
        );
        assert!(options.provisioner && options.pool_size == 4096);
        for wrong in [
            "serve --folder /r --pool /p --pool-size 1 --node a=b=/c",
            "serve --folder /r --pool /p --pool-size x --no-provisioner --node a=b=/c",
            "serve --folder /r --pool /p --pool-size 1 --no-provisioner --node a=/c",
            "serve --folder /r --pool /p --pool-size 1 --no-provisioner",
            "serve --folder",
            "run",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_folder_of_a_fault_may_be_last() {
        let folder = PathBuf::from("/r");
        let fail =
            |message: &str, count| Order::Fail { kind: "Probe".into(), count, message: message.into() };
        assert_eq!(
            of("fault fail Probe 2 out of agate --folder /r").unwrap(),
            Command::Fault(folder.clone(), fail("out of agate", 2))
        );
        assert_eq!(
            of("fault --folder /r read-only ns/data-0 off").unwrap(),
            Command::Fault(folder.clone(), Order::ReadOnly { volume: "ns/data-0".into(), off: true })
        );
        assert_eq!(
            of("fault delay Probe 0.5 3 --folder /r").unwrap(),
            Command::Fault(folder, Order::Delay { kind: "Probe".into(), seconds: 0.5, count: 3 })
        );
        for wrong in [
            "fault list",
            "fault slow v --folder /r",
            "fault fail Probe two --folder /r",
            "fault --folder /r",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
