//! Amazon's client, and what its errors mean.

use std::error::Error;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Credentials;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use secrecy::ExposeSecret as _;

use super::Config;
use super::verdict::{self, Verdict};
use crate::sink::{Cause, Outage};

/// Amazon closes connections that are idle for longer; ours are closed before, so that none is used that is half gone.
const IDLE: Duration = Duration::from_secs(10);

/// A client; it connects when it is used. Where the credentials come from is decided now, what they are when they are needed.
pub(super) async fn open(config: &Config) -> Client {
    let http = aws_smithy_http_client::Builder::new()
        .pool_idle_timeout(IDLE)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(config.timeout)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        // A sink answers; the lane tries again.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(url) = &config.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        let secret = secret.expose_secret();
        loader =
            loader.credentials_provider(Credentials::new(id, secret, None, None, "aftercommit"));
    }
    Client::new(&loader.load().await)
}

/// What an error of a request means.
pub(super) fn verdict<E>(error: &SdkError<E, HttpResponse>) -> Verdict
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let away = |words: &str| {
        let mut deepest: &(dyn Error + 'static) = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        Verdict::Away(Cause::new(format!("{words}: {deepest}")))
    };
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            verdict::of_request(answer.err().code(), status)
        }
        SdkError::ConstructionFailure(_) => away("no request to SQS can be made"),
        SdkError::TimeoutError(_) => {
            Verdict::Away(Cause::new("SQS has not answered within the sink's timeout"))
        }
        SdkError::DispatchFailure(_) => away("SQS is not reached"),
        _ => away("SQS has answered something else than SQS does"),
    }
}

/// As an outage, whatever it is.
pub(super) fn outage(verdict: Verdict) -> Outage {
    match verdict {
        Verdict::Message(cause) | Verdict::Later(cause) | Verdict::Away(cause) => {
            Outage::new(cause)
        }
    }
}
