//! Makes short-lived tokens, which pages in browsers use in place of a key.

use std::time::Duration;

use actix_web::{HttpResponse, http::header, web};
use common::{json::ObjectWriter, time};
use model::access::{Access, MAX_PATTERNS, NamePatterns, Scope, Scopes};
use serde::Deserialize;

use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    routes::ApiResult,
    services::Services,
    tokens::MintRefusal,
};

/// The longest subject.
const MAX_SUBJECT_BYTES: usize = 128;

/// What a client asks for. What it leaves out is as in its key.
#[derive(Deserialize)]
struct TokenRequest {
    subject: Option<String>,
    scopes: Option<Vec<String>>,
    queues: Option<Vec<String>>,
    channels: Option<Vec<String>>,
    namespace: Option<String>,
    lifetime_ms: Option<u64>,
}

/// Makes a token that may do what the request says, and at most what its sender may do.
pub(crate) async fn create(services: web::Data<Services>, caller: Caller, body: JsonBody) -> ApiResult {
    let asked: TokenRequest = body.parse()?;
    if caller.id.is_empty() {
        let message = "this gateway serves every request without a key, so a token would give nothing";
        return Err(ApiError::new(ErrorCode::TokensOff, message));
    }
    let granted = asked.granted(&caller)?;
    let lifetime = asked.lifetime_ms.map(Duration::from_millis);
    let made = services.auth.tokens().make(&granted, &caller, store::local_now(), lifetime);
    let made = made.map_err(|refusal| match refusal {
        MintRefusal::Off => {
            ApiError::new(ErrorCode::TokensOff, "this gateway makes no tokens: auth.tokens.secret is not set")
        }
        MintRefusal::Lifetime(max) => {
            ApiError::invalid(format!("lifetime_ms must be an integer from 1 to {}", max.as_millis()))
        }
        MintRefusal::MoreThanMaker => {
            let message = "a token cannot do more than the key that makes it: ask for fewer scopes, queues or channels";
            ApiError::new(ErrorCode::NameNotAllowed, message)
        }
        MintRefusal::Broken(cause) => ApiError::internal(cause),
    })?;
    let mut answer = ObjectWriter::default();
    answer.text("token", &made.token).text("expires_at", &time::format(made.expires_at));
    let scopes: Vec<&str> = granted.scopes.iter().map(Scope::name).collect();
    answer.raw("scopes", &serde_json::json!(scopes).to_string());
    // Nobody may keep it: not a proxy, and not the disk of a browser
    let no_store = (header::CACHE_CONTROL, "no-store");
    Ok(HttpResponse::Created().insert_header(no_store).content_type("application/json").body(answer.finish()))
}

impl TokenRequest {
    /// The requested rights.
    fn granted(&self, caller: &Access) -> Result<Access, ApiError> {
        let subject = self.subject.as_deref().unwrap_or(&caller.name);
        let is_fit = (1..=MAX_SUBJECT_BYTES).contains(&subject.len()) && subject.bytes().all(|b| b.is_ascii_graphic());
        if self.subject.is_some() && !is_fit {
            let message = format!("subject must be 1 to {MAX_SUBJECT_BYTES} printable ASCII characters without spaces");
            return Err(ApiError::invalid(message));
        }
        let namespace = self.namespace.as_deref().map(str::parse).transpose()?;
        Ok(Access {
            name: subject.to_owned(),
            scopes: self.scopes(caller)?,
            queues: patterns("queues", self.queues.as_ref(), &caller.queues)?,
            channels: patterns("channels", self.channels.as_ref(), &caller.channels)?,
            namespace: namespace.or_else(|| caller.namespace.clone()),
            ..caller.clone()
        })
    }

    fn scopes(&self, caller: &Access) -> Result<Scopes, ApiError> {
        let Some(names) = &self.scopes else { return Ok(caller.scopes) };
        names.iter().map(|name| name.parse::<Scope>().map_err(ApiError::invalid)).collect()
    }
}

fn patterns(what: &str, asked: Option<&Vec<String>>, usual: &NamePatterns) -> Result<NamePatterns, ApiError> {
    let Some(asked) = asked else { return Ok(usual.clone()) };
    if asked.len() > MAX_PATTERNS {
        return Err(ApiError::invalid(format!("{what} must have at most {MAX_PATTERNS} patterns")));
    }
    Ok(NamePatterns::parse(Some(asked.iter().map(String::as_str)))?)
}
