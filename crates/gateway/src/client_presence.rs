//! How a client takes part in channels and watches who is there, for event streams and `WebSocket` connections.

use std::{
    collections::HashMap,
    future::poll_fn,
    task::{Context, Poll},
};

use common::{
    json::{self, Object},
    name::ChannelName,
};
use model::{MemberId, MemberInfo, access::MemberRight};
use serde_json::value::RawValue;
use store::channels::{ChannelPresence, MemberGuard, PresenceEvent, TooManyMembers, WatchGuard};
use tokio::sync::mpsc;

use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
};

/// The most events that wait for a client. One that reads more slowly gets all members again.
const EVENT_BUFFER: usize = 64;

/// What a client asks for on a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PresenceRequest {
    /// As whom it takes part; none if it does not.
    pub(crate) joins: Option<(MemberId, MemberInfo)>,
    /// Whether it is told who is there, who joins and who leaves.
    pub(crate) watches: bool,
}

impl PresenceRequest {
    /// What a frame of a WebSocket asks for. `join` is `true`, or an object that may have `member` and `info`.
    pub(crate) fn parse(
        caller: &Caller,
        is_stranger: bool,
        watches: bool,
        join: Option<&RawValue>,
    ) -> Result<Self, ApiError> {
        let Some(join) = join.map(RawValue::get).filter(|join| *join != "false") else {
            return Ok(Self { joins: None, watches });
        };
        let members: Object =
            if join == "true" { Object::default() } else { json::parse(join.as_bytes(), usize::MAX)? };
        members.check_names(&["member", "info"]).map_err(ApiError::invalid)?;
        let member = members.get("member").map(|text| serde_json::from_str::<String>(text.get())).transpose();
        let member = member.map_err(|_| ApiError::invalid("member must be a string"))?;
        let info = members.get("info").map(|info| MemberInfo::parse(info.get())).transpose();
        let info = info.map_err(ApiError::invalid)?.unwrap_or_default();
        Ok(Self { joins: Some((member_of(caller, is_stranger, member.as_deref())?, info)), watches })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.joins.is_none() && !self.watches
    }
}

/// As which member a client may take part: the one that it names, if it may speak for that one.
pub(crate) fn member_of(caller: &Caller, is_stranger: bool, asked: Option<&str>) -> Result<MemberId, ApiError> {
    if is_stranger {
        let message = "a page of another site may take part in a channel with a key or token only";
        return Err(ApiError::new(ErrorCode::CrossSiteRequest, message));
    }
    let refused = |message: String| ApiError::new(ErrorCode::NameNotAllowed, message);
    let asked: Option<MemberId> = asked.map(str::parse).transpose()?;
    match (&caller.member, asked) {
        (MemberRight::Any, Some(member)) => Ok(member),
        (MemberRight::Any, None) => Err(ApiError::invalid("name the member: only a token says who it is for")),
        (MemberRight::Only(subject), None) => Ok(subject.clone()),
        (MemberRight::Only(subject), Some(member)) if member == *subject => Ok(member),
        (MemberRight::Only(subject), Some(_)) => {
            Err(refused(format!("this token is for {subject}: its owner can be no other member")))
        }
        (MemberRight::None, _) => Err(refused(
            "this token has no subject of 1 to 128 printable characters that its issuer or a key gave it".to_owned(),
        )),
    }
}

/// The channels on which a client takes part, or that it watches.
pub(crate) struct ClientPresence {
    presence: ChannelPresence,
    sender: mpsc::Sender<PresenceEvent>,
    events: mpsc::Receiver<PresenceEvent>,
    channels: HashMap<ChannelName, ChannelPart>,
}

struct ChannelPart {
    member: Option<MemberGuard>,
    watch: Option<WatchGuard>,
}

impl ClientPresence {
    pub(crate) fn new(presence: &ChannelPresence) -> Self {
        let (sender, events) = mpsc::channel(EVENT_BUFFER);
        Self { presence: presence.clone(), sender, events, channels: HashMap::new() }
    }

    /// Does what the client asks for on a channel, instead of what it asked for before. It leaves without a grace what it
    /// does not ask for any more. `may_wait`: whether it takes part later if Redis is away.
    pub(crate) async fn set(
        &mut self,
        channel: &ChannelName,
        asked: PresenceRequest,
        may_wait: bool,
    ) -> Result<(), ApiError> {
        let joined = match asked.joins {
            Some((member, info)) => {
                let (guard, outcome) = self.presence.join(channel, member, info).await;
                match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(refused)) => return Err(refused.into()),
                    Err(_) if may_wait => {}
                    Err(error) => return Err(error.into()),
                }
                Some(guard)
            }
            None => None,
        };
        let before = self.channels.remove(channel);
        let (member, watch) = before.map_or((None, None), |part| (part.member, part.watch));
        if let Some(member) = member {
            // Its new connection keeps the same member there
            member.leave();
        }
        let watch = if asked.watches {
            watch.or_else(|| Some(self.presence.watch(channel, self.sender.clone())))
        } else {
            None
        };
        if joined.is_some() || watch.is_some() {
            self.channels.insert(channel.clone(), ChannelPart { member: joined, watch });
        }
        Ok(())
    }

    /// Leaves channels that the client no longer reads.
    pub(crate) fn retain_channels(&mut self, is_read: impl Fn(&ChannelName) -> bool) {
        for (_, part) in self.channels.extract_if(|channel, _| !is_read(channel)) {
            if let Some(member) = part.member {
                member.leave();
            }
        }
    }

    /// Polls for the next event.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<PresenceEvent> {
        // It has a sender itself, so this never ends
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// The next event of who joins and leaves; none ever for a client that does not ask.
pub(crate) async fn next_presence(presence: &mut Option<Box<ClientPresence>>) -> PresenceEvent {
    match presence {
        Some(presence) => poll_fn(|cx| presence.poll_next(cx)).await,
        None => std::future::pending().await,
    }
}

impl From<TooManyMembers> for ApiError {
    fn from(TooManyMembers { max }: TooManyMembers) -> Self {
        Self::new(
            ErrorCode::TooManyMembers,
            format!("the channel has {max} members, which is channels.presence_max_members"),
        )
    }
}
