//! The repository's config: its id, its version and the polynomial that decides where files are cut.

use serde::{Deserialize, Serialize};

use crate::crypto::random;
use crate::error::{Error, Result};
use crate::files::CONFIG;
use crate::id::Id;
use crate::options::Version;
use crate::polynomial::Polynomial;

/// A config that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) polynomial: Polynomial,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    id: String,
    chunker_polynomial: String,
}

impl Config {
    /// For a new repository.
    pub(crate) fn new(version: Version) -> Result<Self> {
        let mut id = Id::default();
        random(&mut id.0)?;
        Ok(Self {
            id: id.to_hex(),
            version,
            polynomial: Polynomial::random()?,
        })
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let stored = Stored {
            version: self.version.number(),
            id: self.id.clone(),
            chunker_polynomial: self.polynomial.to_hex(),
        };
        serde_json::to_vec(&stored).map_err(|error| Error::Internal(error.to_string()))
    }

    /// `location` is for the error.
    pub(crate) fn parse(json: &[u8], location: &str) -> Result<Self> {
        let stored: Stored =
            serde_json::from_slice(json).map_err(|error| Error::corrupt(CONFIG, error))?;
        let version = match stored.version {
            1 => Version::V1,
            2 => Version::V2,
            version => {
                return Err(Error::UnsupportedVersion {
                    location: location.into(),
                    version,
                });
            }
        };
        let polynomial = Polynomial::parse(&stored.chunker_polynomial)
            .ok_or_else(|| Error::corrupt(CONFIG, "its chunker polynomial is not irreducible"))?;
        Ok(Self {
            id: stored.id,
            version,
            polynomial,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let config = Config::new(Version::V1).unwrap();
        let json = config.to_json().unwrap();
        assert!(json.starts_with(b"{\"version\":1,\"id\":\""));
        let back = Config::parse(&json, "here").unwrap();
        assert_eq!((back.id, back.polynomial), (config.id, config.polynomial));
    }

    #[test]
    fn refuses_what_is_no_config() {
        for json in [
            "",
            "{}",
            "[]",
            r#"{"version":2,"id":"x","chunker_polynomial":"4"}"#,
        ] {
            assert!(
                matches!(
                    Config::parse(json.as_bytes(), "here"),
                    Err(Error::Corrupt { .. })
                ),
                "{json}"
            );
        }
        let newer = r#"{"version":3,"id":"x","chunker_polynomial":"3da3358b4dc173"}"#;
        assert!(matches!(
            Config::parse(newer.as_bytes(), "here"),
            Err(Error::UnsupportedVersion { version: 3, .. })
        ));
    }
}
