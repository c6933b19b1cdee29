//! Enumerations that other programs may extend.

/// Declares an enumeration that is written as its names and read without ever failing: a name that is not known becomes `Unknown`.
/// The empty string, which Go programs write for "not set", becomes the first variant. The schema lists the known names.
macro_rules! tolerant_enum {
    (
        $(#[$doc:meta])*
        pub enum $name:ident { $(#[$first_doc:meta])* $first:ident $(= $first_text:literal)?, $($(#[$variant_doc:meta])* $variant:ident $(= $text:literal)?,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $(#[$first_doc])*
            #[default]
            $first,
            $($(#[$variant_doc])* $variant,)*
            /// A value this program does not know.
            Unknown,
        }

        impl $name {
            /// Every value that may be written.
            pub const ALL: &'static [Self] = &[Self::$first, $(Self::$variant),*];

            /// The value as it is written.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::$first => crate::tolerant::text!($first $(, $first_text)?),
                    $(Self::$variant => crate::tolerant::text!($variant $(, $text)?),)*
                    Self::Unknown => "Unknown",
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                if text.is_empty() {
                    return Self::default();
                }
                Self::ALL.iter().copied().find(|v| v.as_str() == text).unwrap_or(Self::Unknown)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                Ok(Self::from(&*text))
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let names: Vec<&str> = Self::ALL.iter().map(|v| v.as_str()).collect();
                schemars::json_schema!({"type": "string", "enum": names})
            }
        }
    };
}

/// The text of a variant: its own name unless it says otherwise.
macro_rules! text {
    ($variant:ident) => {
        stringify!($variant)
    };
    ($variant:ident, $text:literal) => {
        $text
    };
}

pub(crate) use {text, tolerant_enum};
