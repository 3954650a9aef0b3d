//! Who is present on a channel.

use actix_web::web;
use common::name::ChannelName;
use model::MemberId;
use serde::Deserialize;
use store::channels::ChannelMember;

use crate::{
    routes::{ApiResult, json_response, list_answer::list_answer, parse_bounded},
    services::Services,
};

/// The default number of members on a page.
const DEFAULT_PAGE_SIZE: usize = 100;
/// The most members on a page.
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
pub(crate) struct ListMembersQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// Members by id.
pub(crate) async fn members(
    services: web::Data<Services>,
    channel: web::Path<String>,
    query: web::Query<ListMembersQuery>,
) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let after: Option<MemberId> = query.after.as_deref().map(str::parse).transpose()?;
    let mut members = services.presence.members(&channel).await?;
    members.retain(|member| after.as_ref().is_none_or(|after| member.id > *after));
    let has_more = members.len() > limit;
    members.truncate(limit);
    let next = members.last().filter(|_| has_more).map(|member| member.id.as_str());
    let items: Vec<String> = members.iter().map(ChannelMember::to_json).collect();
    Ok(json_response(list_answer(&items, next)))
}
