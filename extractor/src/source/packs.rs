//! Packs to read, on this machine or behind an address.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_manifests::folder::{LocalFiles, MANIFEST, OpenOptions, PackFiles};
use segpack_manifests::{Pack, PackError};

#[cfg(feature = "remote")]
use super::remote::{RemotePack, is_offline};
use super::{SourceError, place};
use crate::work::Job;

/// A place that may hold a pack.
#[derive(Debug)]
pub(crate) enum PackPlace {
    /// A folder of this machine, or what is to be one.
    Local(PathBuf),
    /// A repository of a hub, or a folder of a web server.
    #[cfg(feature = "remote")]
    Remote(Arc<RemotePack>),
}

impl PackPlace {
    /// Finds what an argument means. Of a hub the list of files is asked for. `job` says when to stop
    /// what is asked of a server, and hears of requests that are sent again.
    ///
    /// # Errors
    /// `Address`, `WithoutRemote`, `Offline`, `Remote`.
    pub(crate) fn find(argument: &Path, job: Job<'static>) -> Result<Self, SourceError> {
        match place::parse(argument) {
            None => Ok(Self::Local(argument.to_owned())),
            Some(place) => {
                let place = place.map_err(|why| place::no_place(argument, why))?;
                Self::reach(argument, &place, job)
            }
        }
    }

    #[cfg(feature = "remote")]
    fn reach(
        argument: &Path,
        place: &place::RemotePlace,
        job: Job<'static>,
    ) -> Result<Self, SourceError> {
        if is_offline() {
            return Err(SourceError::Offline {
                place: argument.to_owned(),
            });
        }
        Ok(Self::Remote(Arc::new(RemotePack::open(place, job)?)))
    }

    #[cfg(not(feature = "remote"))]
    fn reach(
        argument: &Path,
        _: &place::RemotePlace,
        _: Job<'static>,
    ) -> Result<Self, SourceError> {
        Err(SourceError::WithoutRemote {
            place: argument.to_owned(),
        })
    }

    /// The same where a pack is: a place with a manifest holds one, everything else may be a
    /// checkpoint, and so may what cannot be asked without a network.
    ///
    /// # Errors
    /// As [`find`](Self::find); where a server does not say.
    pub(crate) fn find_pack(
        argument: &Path,
        job: Job<'static>,
    ) -> Result<Option<Self>, SourceError> {
        let place = match Self::find(argument, job) {
            #[cfg(feature = "remote")]
            Err(SourceError::Offline { .. }) => return Ok(None),
            found => found?,
        };
        let is_pack = match &place {
            Self::Local(path) => path.join(MANIFEST).symlink_metadata().is_ok(),
            #[cfg(feature = "remote")]
            Self::Remote(files) => files.has(MANIFEST)?,
        };
        Ok(is_pack.then_some(place))
    }

    /// Its files, wherever they are.
    pub(crate) fn files(&self) -> Arc<dyn PackFiles> {
        match self {
            Self::Local(path) => Arc::new(LocalFiles::new(path)),
            #[cfg(feature = "remote")]
            Self::Remote(files) => Arc::clone(files) as Arc<dyn PackFiles>,
        }
    }

    /// Opens the pack.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub(crate) fn open(self, options: OpenOptions) -> Result<Pack, PackError> {
        match self {
            Self::Local(path) => options.open(&path),
            #[cfg(feature = "remote")]
            Self::Remote(files) => {
                let pack = options.open_at(Arc::clone(&files) as Arc<dyn PackFiles>)?;
                files.learn(pack.manifest());
                Ok(pack)
            }
        }
    }
}

/// The folder of a pack that is written to.
///
/// # Errors
/// `OnlyFolder` where it is an address.
pub(crate) fn local_pack<'a>(
    argument: &'a Path,
    why: &'static str,
) -> Result<&'a Path, SourceError> {
    match place::parse(argument) {
        None => Ok(argument),
        Some(_) => Err(SourceError::OnlyFolder {
            place: argument.to_owned(),
            why,
        }),
    }
}
