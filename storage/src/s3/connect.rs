//! From settings to SDK clients: credentials, region, retries, deadlines.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};

use super::config::{Credentials, S3Config, Timeouts};
use super::http;
use crate::Result;

/// What signs requests to a server that does not care about regions.
const DEFAULT_REGION: &str = "us-east-1";

/// Pauses between attempts are random up to these.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The SDK's clients of one store.
pub(super) struct Clients {
    /// Talks to the server.
    pub(super) client: Client,
    /// Signs URLs for users outside.
    pub(super) presigner: Client,
}

/// Makes the clients. Asks the server for the bucket's region where none is configured.
pub(super) async fn clients(config: &S3Config) -> Result<Clients> {
    let environment =
        || std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION"));
    let configured = config.region.clone().or_else(|| environment().ok());
    let first = Region::new(
        configured
            .clone()
            .unwrap_or_else(|| DEFAULT_REGION.to_owned()),
    );
    let credentials = credentials(&config.credentials, first.clone()).await;
    let mut builder = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(first)
        .credentials_provider(credentials)
        .force_path_style(config.path_style)
        .http_client(http::client(config)?)
        .timeout_config(deadlines(&config.timeouts, 0))
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(config.timeouts.attempts.max(1))
                .with_initial_backoff(FIRST_PAUSE)
                .with_max_backoff(LONGEST_PAUSE),
        )
        // Deadlines of our own are exact; this one is a guess by throughput.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    builder.set_endpoint_url(config.endpoint.clone());
    if configured.is_none()
        && let Some(region) = lookup(&Client::from_conf(builder.clone().build()), config).await
    {
        builder = builder.region(Region::new(region));
    }
    let client = Client::from_conf(builder.clone().build());
    let presigner = match &config.public_url {
        None => client.clone(),
        Some(url) => Client::from_conf(builder.endpoint_url(url).build()),
    };
    Ok(Clients { client, presigner })
}

/// Deadlines of an operation that moves `bytes`.
pub(super) fn deadlines(timeouts: &Timeouts, bytes: u64) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(timeouts.connect)
        .operation_attempt_timeout(timeouts.attempt(bytes))
        .operation_timeout(timeouts.operation(bytes))
        .build()
}

/// The bucket's region as the server tells it; `None` where it does not, the next request will say why.
async fn lookup(client: &Client, config: &S3Config) -> Option<String> {
    let once = Builder::new().retry_config(RetryConfig::disabled());
    let request = client.get_bucket_location().bucket(&config.bucket);
    match request.customize().config_override(once).send().await {
        Ok(answer) => match answer.location_constraint().map(|region| region.as_str()) {
            None | Some("") => None,
            Some("EU") => Some("eu-west-1".to_owned()),
            Some(region) => Some(region.to_owned()),
        },
        Err(error) => {
            let header = error
                .raw_response()
                .and_then(|r| r.headers().get("x-amz-bucket-region"));
            let region = header.map(str::to_owned);
            let bucket = &config.bucket;
            tracing::debug!(%bucket, ?region, "the server does not tell the bucket's location");
            region
        }
    }
}

async fn credentials(credentials: &Credentials, region: Region) -> SharedCredentialsProvider {
    match credentials {
        Credentials::Environment { profile } => {
            let mut chain = DefaultCredentialsChain::builder().region(region);
            if let Some(profile) = profile {
                chain = chain.profile_name(profile);
            }
            SharedCredentialsProvider::new(chain.build().await)
        }
        Credentials::File { content, profile } => {
            let files = EnvConfigFiles::builder()
                .with_contents(EnvConfigFileKind::Credentials, content.clone())
                .build();
            let settings = ProviderConfig::without_region().with_region(Some(region));
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&settings)
                .profile_files(files)
                .profile_name(profile);
            SharedCredentialsProvider::new(provider.build())
        }
        Credentials::Key { id, secret } => SharedCredentialsProvider::new(
            aws_credential_types::Credentials::new(id, secret, None, None, "configuration"),
        ),
    }
}
