//! The process: all sockets, the provisioner, and the end.

use crate::{
    authority,
    cli::{Node, Options},
    controller::ControllerService,
    faults::{Admin, Answer, Order, Rules},
    identity::IdentityService,
    layer::Watch,
    node::NodeService,
    pool::Pool,
    provision,
    registration::RegistrationService,
    rpc::{
        controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer,
        registration_server::RegistrationServer,
    },
    rules::DRIVER,
};
use anyhow::{Context as _, Result, anyhow, bail};
use futures::{Stream, TryStreamExt as _};
use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{
    Server,
    server::{Connected, Router},
};

/// How long calls that run may take to their end after SIGTERM. Mounts are read anew by the next process, so nothing is lost.
const GRACE: Duration = Duration::from_secs(5);
/// How long the admin socket waits for its line.
const LINE: Duration = Duration::from_secs(10);
/// Longest line of the admin socket, bytes.
const LONGEST_LINE: u64 = 64 << 10;
/// How long `fault` waits for its answer: a call that holds the volume comes first.
const ANSWER: Duration = Duration::from_secs(120);

fn admin_socket(folder: &Path) -> PathBuf {
    folder.join("admin.sock")
}

/// Serves until SIGTERM or SIGINT; anything that ends before is an error.
pub async fn serve(options: Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can mount; run this as root");
    }
    let mut ends = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    std::fs::create_dir_all(&options.folder)
        .with_context(|| format!("making {}", options.folder.display()))?;
    let _only = only_one(&options.folder)?;
    let pool = Pool::open(&options.folder, &options.pool, options.pool_size).await?;
    let rules = Rules::default();
    let (end, ended) = watch::channel(());
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();

    let watch = |place: &str| Watch { rules: rules.clone(), place: place.into() };
    let server = |place: &str| Server::builder().layer(watch(place));
    for node in &options.nodes {
        let endpoint = node.kubelet.join("plugins").join(DRIVER).join("csi.sock");
        let service = NodeService { pool: Arc::clone(&pool), node: node.clone() };
        let router = server(&node.name)
            .add_service(IdentityServer::new(IdentityService))
            .add_service(NodeServer::new(service));
        tasks.spawn(run(router, listen(&endpoint)?, ended.clone()));
        // Last: when the kubelet sees this socket, it asks the other one.
        let socket = node.kubelet.join("plugins_registry").join(format!("{DRIVER}-reg.sock"));
        let service = RegistrationService { node: node.name.clone(), endpoint };
        let router = server(&node.name).add_service(RegistrationServer::new(service));
        let listener = UnixListenerStream::new(listen(&socket)?);
        tasks.spawn(run_on(router, listener.map_ok(authority::tolerant), ended.clone()));
    }
    let admin =
        Admin { pool: Arc::clone(&pool), rules: rules.clone(), kubeconfig: options.kubeconfig.clone() };
    tasks.spawn(administer(Arc::new(admin), listen(&admin_socket(&options.folder))?));
    // The last socket: whoever waits for the driver waits for this one.
    let socket = options.folder.join("controller.sock");
    let zone = options.nodes.first().map(|node: &Node| node.zone.clone());
    let service = ControllerService { pool: Arc::clone(&pool), zone };
    let router = server("controller")
        .add_service(IdentityServer::new(IdentityService))
        .add_service(ControllerServer::new(service));
    tasks.spawn(run(router, listen(&socket)?, ended));
    let throttles = pool.throttles.clone();
    tasks.spawn(async move {
        throttles.keep().await;
        Ok(())
    });
    if let (true, Some(kubeconfig)) = (options.provisioner, options.kubeconfig) {
        let options = provision::Options { kubeconfig, controller: socket, driver: DRIVER.into() };
        tasks.spawn(async move { provision::run(options).await.context("the provisioner") });
    }
    tracing::info!(folder = %options.folder.display(), nodes = options.nodes.len(), "serving");

    tokio::select! {
        _ = ends.0.recv() => {}
        _ = ends.1.recv() => {}
        finished = tasks.join_next() => match finished {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => return Err(error.into()),
            _ => bail!("a part of the driver ended by itself"),
        },
    }
    tracing::info!("ending; mounts stay");
    // Servers that ended let go of their receivers; a kubelet's idle connection is closed by the server.
    let _ = end.send(());
    let _ = tokio::time::timeout(GRACE, end.closed()).await;
    Ok(())
}

/// Two processes would not know of each other's calls. The lock ends with the process, however it ends.
fn only_one(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
    file.try_lock().map_err(|error| anyhow!("another process serves {}: {error}", folder.display()))?;
    Ok(file)
}

/// Listens at a path, in place of what an earlier process left there.
fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))?;
    Ok(listener)
}

type Watched = tower::layer::util::Stack<Watch, tower::layer::util::Identity>;

async fn run(router: Router<Watched>, listener: UnixListener, ended: watch::Receiver<()>) -> Result<()> {
    run_on(router, UnixListenerStream::new(listener), ended).await
}

async fn run_on<S>(
    router: Router<Watched>,
    incoming: impl Stream<Item = std::io::Result<S>>,
    mut ended: watch::Receiver<()>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let end = async move {
        let _ = ended.changed().await;
    };
    Ok(router.serve_with_incoming_shutdown(incoming, end).await?)
}

async fn administer(admin: Arc<Admin>, listener: UnixListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("the admin socket")?;
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            if let Err(error) = converse(&admin, stream).await {
                tracing::warn!(%error, "the admin socket");
            }
        });
    }
}

async fn converse(admin: &Admin, stream: UnixStream) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LONGEST_LINE));
    tokio::time::timeout(LINE, read.read_line(&mut line)).await.context("no line came")??;
    let result = match serde_json::from_str::<Order>(&line) {
        Ok(order) => admin.obey(order).await,
        Err(error) => Err(anyhow!("{line:?} is no order: {error}")),
    };
    let answer = match result {
        Ok(text) => Answer { ok: true, text },
        Err(error) => Answer { ok: false, text: format!("{error:#}") },
    };
    tracing::info!(order = line.trim(), ok = answer.ok, text = answer.text, "was told");
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await.context("answering")
}

/// Tells the process that serves in this folder to do something.
pub async fn tell(folder: &Path, order: &Order) -> Result<Answer> {
    let path = admin_socket(folder);
    let talk = async {
        let mut stream = UnixStream::connect(&path)
            .await
            .with_context(|| format!("reaching {}; does holdfast-devcsi run?", path.display()))?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.write_all(&line).await.context("asking")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("waiting for the answer")?;
        serde_json::from_str(&answer).with_context(|| format!("{answer:?} is no answer"))
    };
    tokio::time::timeout(ANSWER, talk).await.context("no answer came; look at the driver's log")?
}
