//! Which namespaces, pods and volumes a policy selects.

use strum::{Display, EnumString, IntoStaticStr, VariantNames};

use crate::Invalid;
use crate::facts::VolumeType;
use crate::labels::Selector;
use crate::pattern::{Globs, Pattern};
use crate::quantity;

/// `spec.namespaces`; the default selects every namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceRule {
    pub(crate) include: Globs,
    pub(crate) exclude: Globs,
    pub(crate) regex: Option<Pattern>,
    pub(crate) selector: Selector,
}

impl NamespaceRule {
    /// # Errors
    /// A pattern that does not compile; a pattern that is both included and excluded.
    pub fn new(
        field: &str,
        include: &[String],
        exclude: &[String],
        regex: Option<&str>,
        selector: Selector,
    ) -> Result<Self, Invalid> {
        if let Some(both) = include.iter().find(|pattern| exclude.contains(pattern)) {
            return Err(Invalid::new(
                format!("{field}.exclude"),
                both,
                "names and globs that are not also in include",
            ));
        }
        Ok(Self {
            include: Globs::new(&format!("{field}.include"), include)?,
            exclude: Globs::new(&format!("{field}.exclude"), exclude)?,
            regex: regex
                .filter(|source| !source.is_empty())
                .map(|source| Pattern::new(&format!("{field}.regex"), source))
                .transpose()?,
            selector,
        })
    }
}

impl NamespaceRule {
    /// The names and globs of `include`, as they were written.
    pub fn include_patterns(&self) -> &[String] {
        self.include.patterns()
    }
}

/// `spec.pods`; the default selects every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRule {
    pub(crate) selector: Selector,
    pub(crate) exclude_jobs: Globs,
}

impl PodRule {
    pub fn new(field: &str, selector: Selector, exclude_jobs: &[String]) -> Result<Self, Invalid> {
        Ok(Self {
            selector,
            exclude_jobs: Globs::new(&format!("{field}.excludeJobs"), exclude_jobs)?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, EnumString, IntoStaticStr, VariantNames)]
pub enum Action {
    Backup,
    Skip,
}

/// What happens to a volume that no rule matches.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    std::default::Default,
    Display,
    EnumString,
    IntoStaticStr,
    VariantNames,
)]
pub enum Default {
    /// Every `persistentVolumeClaim` volume is backed up.
    #[default]
    Claims,
    /// Every eligible volume is.
    All,
    /// None is.
    None,
}

/// `spec.volumes`: ordered rules, the first match decides.
#[derive(Debug, Clone, std::default::Default, PartialEq)]
pub struct Volumes {
    pub(crate) rules: Vec<VolumeRule>,
    pub(crate) default: Default,
}

impl Volumes {
    /// # Errors
    /// Two rules of the same name.
    pub fn new(field: &str, rules: Vec<VolumeRule>, default: Default) -> Result<Self, Invalid> {
        for (at, rule) in rules.iter().enumerate() {
            if rules
                .iter()
                .take(at)
                .any(|earlier| earlier.name == rule.name)
            {
                return Err(Invalid::new(
                    format!("{field}.rules[{at}].name"),
                    &rule.name,
                    "a name that no other rule has",
                ));
            }
        }
        Ok(Self { rules, default })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct VolumeRule {
    pub(crate) name: String,
    pub(crate) matches: Match,
    pub(crate) action: Action,
}

impl VolumeRule {
    /// # Errors
    /// An empty name: verdicts name the rule that decided.
    pub fn new(field: &str, name: &str, matches: Match, action: Action) -> Result<Self, Invalid> {
        if name.trim().is_empty() {
            return Err(Invalid::new(format!("{field}.name"), name, "a name"));
        }
        Ok(Self {
            name: name.to_owned(),
            matches,
            action,
        })
    }
}

/// A rule's conditions, ANDed. A condition on the claim is not met by a volume without one. The default matches every volume.
#[derive(Debug, Clone, std::default::Default, PartialEq)]
pub struct Match {
    pub(crate) types: Vec<VolumeType>,
    pub(crate) storage_classes: Vec<String>,
    pub(crate) access_modes: Vec<String>,
    pub(crate) claim_selector: Selector,
    pub(crate) claim_regex: Option<Pattern>,
    /// Bytes, both inclusive.
    pub(crate) min_capacity: Option<u64>,
    pub(crate) max_capacity: Option<u64>,
    pub(crate) csi_drivers: Vec<String>,
}

/// Input of [`Match::new`]; empty lists and `None` are no condition.
#[derive(Debug, Clone, Copy, std::default::Default)]
pub struct MatchParts<'a> {
    /// Keys of a pod volume: `persistentVolumeClaim`, `emptyDir`, `ephemeral`, `nfs`, `csi`, …
    pub types: &'a [String],
    pub storage_classes: &'a [String],
    /// `ReadWriteOnce`, `ReadOnlyMany`, `ReadWriteMany`, `ReadWriteOncePod`.
    pub access_modes: &'a [String],
    pub claim_regex: Option<&'a str>,
    /// Kubernetes quantities.
    pub min_capacity: Option<&'a str>,
    pub max_capacity: Option<&'a str>,
    pub csi_drivers: &'a [String],
}

impl Match {
    /// # Errors
    /// An unknown type or access mode, a regex that does not compile, bounds that are no quantities or the wrong way round.
    pub fn new(
        field: &str,
        parts: MatchParts<'_>,
        claim_selector: Selector,
    ) -> Result<Self, Invalid> {
        let types = parts
            .types
            .iter()
            .enumerate()
            .map(|(at, key)| VolumeType::selectable(&format!("{field}.types[{at}]"), key))
            .collect::<Result<_, _>>()?;
        const MODES: [&str; 4] = [
            "ReadWriteOnce",
            "ReadOnlyMany",
            "ReadWriteMany",
            "ReadWriteOncePod",
        ];
        for (at, mode) in parts.access_modes.iter().enumerate() {
            if !MODES.contains(&mode.as_str()) {
                return Err(Invalid::new(
                    format!("{field}.accessModes[{at}]"),
                    mode,
                    MODES.join(", "),
                ));
            }
        }
        let capacity = |name: &str, text: Option<&str>| {
            text.map(|text| quantity::bytes(&format!("{field}.capacity.{name}"), text))
                .transpose()
        };
        let min_capacity = capacity("min", parts.min_capacity)?;
        let max_capacity = capacity("max", parts.max_capacity)?;
        if let (Some(min), Some(max)) = (min_capacity, max_capacity)
            && min > max
        {
            return Err(Invalid::raw(
                format!("{field}.capacity.min"),
                format!("{min} bytes, above max ({max} bytes)"),
                "min not above max",
            ));
        }
        Ok(Self {
            types,
            storage_classes: parts.storage_classes.to_vec(),
            access_modes: parts.access_modes.to_vec(),
            claim_selector,
            claim_regex: parts
                .claim_regex
                .filter(|source| !source.is_empty())
                .map(|source| Pattern::new(&format!("{field}.claimRegex"), source))
                .transpose()?,
            min_capacity,
            max_capacity,
            csi_drivers: parts.csi_drivers.to_vec(),
        })
    }
}
