//! Loop devices, mounts and the programs that make them. What is attached and mounted is always read from the kernel, never
//! remembered: that is how a new process takes over what it finds.

use anyhow::{Context as _, Result, anyhow, bail};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

/// How long a program may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a device may take to let its file go.
const LET_GO: Duration = Duration::from_secs(5);

/// Runs a program to its end and returns what it printed; an error has what it complained of.
pub async fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        // These programs are in folders that ordinary users' paths leave out.
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, output)
        .await
        .map_err(|_| anyhow!("{program} took more than {} s", DEADLINE.as_secs()))?
        .with_context(|| format!("running {program}; is its package installed?"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = complaint.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        bail!("{program} ended with {}: {complaint}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// A mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the device, such as 7:3.
    pub device: String,
    /// The folder of the file system that is mounted; / unless it is a bind mount of a part.
    pub root: String,
    /// Where.
    pub path: PathBuf,
    /// This mount takes no writes; the file system may.
    pub read_only: bool,
}

/// All mounts, in the order in which they were made.
pub fn mounts() -> Result<Vec<Mount>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(parse_mounts(&table))
}

fn parse_mounts(table: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.to_string();
        let root = unescape(fields.next()?);
        let path = PathBuf::from(unescape(fields.next()?));
        let read_only = fields.next()?.split(',').any(|option| option == "ro");
        Some(Mount { device, root, path, read_only })
    };
    table.lines().filter_map(parse).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

/// A loop device that has a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Its name, such as loop3.
    pub name: String,
    /// Major and minor number, such as 7:3.
    pub device: String,
    /// The file.
    pub file: PathBuf,
    /// The file was deleted; another may be in its place.
    pub deleted: bool,
    /// It was detached while in use and goes with its last user.
    pub leaving: bool,
}

impl Loop {
    /// The device's file.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// All loop devices that have a file.
pub fn loops() -> Result<Vec<Loop>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("reading /sys/block")? {
        let entry = entry.context("reading /sys/block")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
        // One that is detached meanwhile has no such files any more.
        if let (true, Ok(file), Ok(device), Ok(autoclear)) =
            (name.starts_with("loop"), read("loop/backing_file"), read("dev"), read("loop/autoclear"))
        {
            let file = file.trim_end_matches('\n');
            let gone = file.strip_suffix(" (deleted)");
            found.push(Loop {
                device: device.trim().to_string(),
                file: gone.unwrap_or(file).into(),
                deleted: gone.is_some(),
                leaving: autoclear.trim() == "1",
                name,
            });
        }
    }
    Ok(found)
}

/// The loop devices of the file that is there now.
pub fn loops_of(file: &Path) -> Result<Vec<Loop>> {
    Ok(loops()?.into_iter().filter(|one| one.file == file && !one.deleted).collect())
}

/// Attaches a volume's image. Sectors of 4096 bytes: the image is a reflinked file from its first snapshot on, which the kernel
/// serves directly in whole blocks only, and a file system cannot change its sectors.
pub async fn attach(image: &Path) -> Result<Loop> {
    let options = ["--find", "--show", "--direct-io=on", "--sector-size", "4096"].map(OsStr::new);
    let path = run("losetup", &[options.as_slice(), &[image.as_os_str()]].concat()).await?;
    let found = loops_of(image)?.into_iter().find(|one| one.path() == Path::new(&path));
    found.ok_or_else(|| anyhow!("{path} has no file although losetup attached {}", image.display()))
}

/// Detaches a device and waits until its file is free. Another mount namespace that still has the file system mounted, such as
/// that of a container which just starts, keeps it for a moment.
pub async fn detach(one: &Loop) -> Result<()> {
    if !one.leaving {
        run("losetup", &[OsStr::new("--detach"), one.path().as_os_str()]).await?;
    }
    if let_go(one).await? {
        return Ok(());
    }
    bail!(
        "{} is still used in another mount namespace after {} s; end the process that has {} mounted",
        one.name,
        LET_GO.as_secs(),
        one.file.display()
    )
}

/// Whether the device lets its file go in time.
pub async fn let_go(one: &Loop) -> Result<bool> {
    let begun = tokio::time::Instant::now();
    loop {
        if !loops()?.iter().any(|other| other.name == one.name && other.file == one.file) {
            return Ok(true);
        }
        if begun.elapsed() >= LET_GO {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes an empty sparse file of this many bytes with an XFS file system.
pub async fn make_file_system(image: &Path, bytes: i64) -> Result<()> {
    set_size(image, bytes)?;
    let options = ["-q", "-K", "-s", "size=4096", "-m", "reflink=1"].map(OsStr::new);
    run("mkfs.xfs", &[options.as_slice(), &[image.as_os_str()]].concat()).await.map(|_| ())
}

/// Makes a file this large; what is added takes no room.
pub fn set_size(file: &Path, bytes: i64) -> Result<()> {
    let bytes = u64::try_from(bytes).context("a size cannot be negative")?;
    let open = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(file);
    open.and_then(|f| f.set_len(bytes)).with_context(|| format!("giving {} {bytes} bytes", file.display()))
}

/// Mounts a device. nouuid: a clone has the identity of its source, and both may be mounted at once.
pub async fn mount(device: &Path, path: &Path, options: &str) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let arguments =
        [OsStr::new("-t"), "xfs".as_ref(), "-o".as_ref(), options.as_ref(), device.as_ref(), path.as_ref()];
    run("mount", &arguments).await.map(|_| ())
}

/// Mounts a folder at another place as well.
pub async fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    run("mount", &[OsStr::new("--bind"), from.as_ref(), to.as_ref()]).await?;
    if read_only {
        let remount = [OsStr::new("-o"), "remount,bind,ro".as_ref(), to.as_ref()];
        if let Err(error) = run("mount", &remount).await {
            // A mount that takes writes must not be left where none was to be.
            let _ = unmount(to, true).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Ends the topmost mount of a place; lazily if it may still be used.
pub async fn unmount(path: &Path, lazily: bool) -> Result<()> {
    // Without looking at the place itself: a file system that was shut down answers nothing.
    let options = ["--no-canonicalize", "--lazy"].map(OsStr::new);
    let options = if lazily { &options[..] } else { &options[..1] };
    run("umount", &[options, &[path.as_os_str()]].concat()).await.map(|_| ())
}

/// Grows a mounted file system to its device. Nothing happens if it is as large.
pub async fn grow(mounted: &Path) -> Result<()> {
    run("xfs_growfs", &[OsStr::new("-d"), mounted.as_ref()]).await.map(|_| ())
}

/// What a failed access says about a file system: XFS answers everything with EIO after it was shut down.
pub fn is_shut_down(mounted: &Path) -> bool {
    const EIO: i32 = 5;
    std::fs::read_dir(mounted).is_err_and(|error| error.raw_os_error() == Some(EIO))
}

/// Ends a file system as a failing disk does: from now on everything fails, and what was not yet written is lost.
pub async fn shut_down(mounted: &Path) -> Result<()> {
    if is_shut_down(mounted) {
        return Ok(());
    }
    run("xfs_io", &[OsStr::new("-x"), "-c".as_ref(), "shutdown".as_ref(), mounted.as_ref()]).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_odd_names() {
        let table = "43 27 7:1 / /run/with\\040space/m rw,relatime - xfs /dev/loop1 rw,nouuid\n\
                     44 27 7:1 /sub /t\\134x ro,relatime shared:3 - xfs /dev/loop1 rw,nouuid\nbroken\n";
        let found = parse_mounts(table);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].path, Path::new("/run/with space/m"));
        assert!(!found[0].read_only);
        assert_eq!((found[1].root.as_str(), found[1].read_only), ("/sub", true));
        assert_eq!(found[1].path, Path::new("/t\\x"));
        assert_eq!(found[1].device, "7:1");
    }

    #[tokio::test]
    async fn a_program_that_fails_says_why() {
        let error = run("sh", &["-c", "echo out of agate >&2; exit 3"]).await.unwrap_err().to_string();
        assert!(error.contains("out of agate") && error.contains('3'), "{error}");
        assert!(run("no-such-program-here", &["x"]).await.is_err());
    }
}
