//! A volume's device and its one real mount, which all stagings and pods share: attached with the first staging, gone with the last.

use crate::{
    device::{self, Loop, Mount},
    pool::{Pool, Staging, Volume, internal},
    rules::{self, Kind, Use},
    throttle::Speed,
};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use tonic::Status;

/// Whether these mounts have one at this place.
pub fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().find(|mount| mount.path == path)
}

/// Paths as the kernel shows them: a folder on the way may be a link.
pub fn resolved(path: &str) -> PathBuf {
    let path = PathBuf::from(path);
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    // The last part may not be there yet, or be a file system that answers nothing.
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path,
    }
}

/// The stagings that are still mounted.
pub fn staged(volume: &Volume, mounts: &[Mount]) -> Vec<Staging> {
    volume.stagings.iter().filter(|staging| at(mounts, &staging.path).is_some()).cloned().collect()
}

/// Where pods have the volume: all mounts of the whole of it but the real one and the stagings.
pub fn targets<'a>(real: &Path, volume: &Volume, mounts: &'a [Mount]) -> Vec<&'a Path> {
    let known = |path: &Path| path == real || volume.stagings.iter().any(|staging| staging.path == path);
    mounts.iter().filter(|m| m.root == "/" && !known(&m.path)).map(|m| m.path.as_path()).collect()
}

/// How fast a volume may be.
pub fn speed(volume: &Volume) -> Result<Speed, Status> {
    let class = rules::class(&volume.parameters)?;
    Ok(match volume.faults.slow {
        Some(bytes) => Speed { write: bytes, read: bytes },
        None => Speed { write: class.write, read: class.read },
    })
}

impl Pool {
    /// Where the volume is staged now.
    pub fn stagings(&self, id: &str, volume: &Volume) -> Result<Vec<Staging>, Status> {
        let attached = self.attachment(id, volume).map_err(internal)?;
        Ok(attached.map(|(_, mounts)| staged(volume, &mounts)).unwrap_or_default())
    }

    /// Attaches and mounts the volume, if it is not.
    pub async fn ensure_mounted(&self, id: &str, volume: &mut Volume, wanted: &Use) -> Result<(), Status> {
        let (image, real) = (self.image(Kind::Volume, id), self.real(id));
        if let Some((one, mounts)) = self.attachment(id, volume).map_err(internal)? {
            if at(&mounts, &real).is_some() {
                return Ok(());
            }
            // Either it was attached and never mounted, or it is on its way out. Two devices of one image would destroy it.
            device::detach(&one).await.map_err(internal)?;
        }
        // Numbers are used again: only those that are still on their way out are meant.
        let leaving = device::loops_of(&image).map_err(internal)?;
        volume.faults.dead.retain(|name| leaving.iter().any(|one| one.name == *name));
        let one = device::attach(&image).await.map_err(internal)?;
        if let Err(error) = self.mount_device(&one, &real, wanted).await {
            if let Err(also) = device::detach(&one).await {
                tracing::warn!(error = %also, device = one.name, "a device stays after its mount failed");
            }
            return Err(internal(error.context(format!("mounting volume {id}"))));
        }
        if let Err(error) = self.throttles.set(&one.device, speed(volume)?) {
            tracing::warn!(%error, volume = id, "the volume is not slowed");
        }
        volume.faults.detached = false;
        self.save(id, volume)
    }

    async fn mount_device(&self, one: &Loop, real: &Path, wanted: &Use) -> Result<()> {
        let mut options = vec!["nouuid"];
        options.extend(wanted.flags.iter().map(String::as_str));
        device::mount(&one.path(), real, &options.join(",")).await?;
        // A clone may be larger than its source, and a volume may have grown while it was nowhere.
        if let Err(error) = device::grow(real).await {
            let _ = device::unmount(real, true).await;
            return Err(error);
        }
        Ok(())
    }

    /// Unmounts and detaches the volume. Nothing may use it any more.
    pub async fn release(&self, id: &str, volume: &Volume) -> Result<()> {
        let real = self.real(id);
        if let Some((one, mounts)) = self.attachment(id, volume)? {
            if at(&mounts, &real).is_some() {
                device::unmount(&real, false).await?;
            }
            device::detach(&one).await?;
            self.throttles.set(&one.device, Speed::default())?;
        }
        remove_folder(&real)?;
        real.parent().map_or(Ok(()), remove_folder)
    }

    /// Takes the device away from under the file system, as a failing disk goes: everything that uses it fails from now on.
    pub async fn pull(&self, id: &str, volume: &mut Volume) -> Result<(), Status> {
        let real = self.real(id);
        let Some((one, mounts)) = self.attachment(id, volume).map_err(internal)? else { return Ok(()) };
        if at(&mounts, &real).is_some() {
            device::shut_down(&real).await.map_err(internal)?;
        }
        // From here on the device is of no use to anybody. It is noted first: a process that ends in between must not wait for it.
        volume.faults.detached = true;
        volume.faults.dead.push(one.name.clone());
        volume.stagings.clear();
        self.save(id, volume)?;
        // Last made, first unmounted: one may be below another.
        for mount in mounts.iter().rev() {
            device::unmount(&mount.path, true).await.map_err(internal)?;
        }
        let path = one.path();
        if !one.leaving {
            // While a container has it mounted, the device goes with that container.
            device::run("losetup", &["--detach".as_ref(), path.as_os_str()]).await.map_err(internal)?;
        }
        Ok(())
    }
}

/// Removes a mount's folder, which is empty, if it is there.
pub fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Faults;

    fn mount(path: &str, root: &str) -> Mount {
        Mount { device: "7:1".into(), root: root.into(), path: path.into(), read_only: false }
    }

    fn volume(stagings: &[&str]) -> Volume {
        let staging = |path: &&str| Staging { node: "amber".into(), path: path.into(), mode: 7 };
        Volume {
            name: "pv-agate".into(),
            capacity: rules::SMALLEST,
            parameters: [("writeBytesPerSecond".to_string(), "5".to_string())].into(),
            zone: None,
            source: None,
            stagings: stagings.iter().map(staging).collect(),
            faults: Faults::default(),
        }
    }

    #[test]
    fn a_staging_counts_while_it_is_mounted() {
        let mounts = [mount("/real", "/"), mount("/a/stage", "/")];
        let found = staged(&volume(&["/a/stage", "/b/stage"]), &mounts);
        assert_eq!(found.iter().map(|s| s.path.as_path()).collect::<Vec<_>>(), [Path::new("/a/stage")]);
    }

    #[test]
    fn parts_of_a_volume_mounted_by_themselves_are_no_pods() {
        let mounts = [
            mount("/real", "/"),
            mount("/a/stage", "/"),
            mount("/pod/1", "/"),
            mount("/pod/1/part", "/data"),
        ];
        assert_eq!(targets(Path::new("/real"), &volume(&["/a/stage"]), &mounts), [Path::new("/pod/1")]);
    }

    #[test]
    fn slowing_one_volume_goes_before_its_class() {
        let mut one = volume(&[]);
        assert_eq!(speed(&one).unwrap(), Speed { write: 5, read: 0 });
        one.faults.slow = Some(9);
        assert_eq!(speed(&one).unwrap(), Speed { write: 9, read: 9 });
    }
}
