//! Label selectors as the API has them, made into valid ones.

use jackline_policy::Invalid;
use jackline_policy::labels::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// `field` is where it stands, for the error. An absent one matches everything.
pub(crate) fn selector(field: &str, raw: Option<&LabelSelector>) -> Result<Selector, Invalid> {
    let Some(raw) = raw else {
        return Ok(Selector::default());
    };
    let expressions = raw.match_expressions.as_deref().unwrap_or_default();
    Selector::new(
        field,
        raw.match_labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_str())),
        expressions.iter().map(|e| {
            (
                e.key.as_str(),
                e.operator.as_str(),
                e.values.as_deref().unwrap_or_default(),
            )
        }),
    )
}
