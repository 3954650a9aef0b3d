-- Rows of this table become jobs and messages of Galley: galley-outbox sends them. For PostgreSQL 14 or newer. It may
-- run twice.

CREATE TABLE IF NOT EXISTS galley_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The Idempotency-Key: a row that is sent twice has one effect
    key uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- A job: its type, its arguments, and other members of it, such as {"queue": "mail"}
    type text,
    args json NOT NULL DEFAULT '[]' CHECK (json_typeof(args) = 'array'),
    options json NOT NULL DEFAULT '{}' CHECK (json_typeof(options) = 'object'),
    -- Or a message: its channel and its data. Text is sent as it is, everything else as JSON
    channel text,
    data json,
    content_type text,
    -- Attributes that make the message a CloudEvent
    attributes json CHECK (json_typeof(attributes) = 'object'),
    -- W3C Trace Context: {"traceparent": "..."}
    trace json CHECK (json_typeof(trace) = 'object'),
    -- Of the relay: when to try next, how often it did, and why Galley did not take the row
    due_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    refused_at timestamptz,
    error text,
    CONSTRAINT galley_outbox_job_or_message CHECK (
        num_nonnulls(type, channel) = 1 AND (channel IS NULL) = (data IS NULL) AND type <> '' AND channel <> ''
    )
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX IF NOT EXISTS galley_outbox_waiting ON galley_outbox (due_at, id) WHERE refused_at IS NULL;

-- Tells relays at the commit that there are new rows. Without it they look every few seconds
CREATE OR REPLACE FUNCTION galley_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY galley_outbox;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER galley_outbox_notify AFTER INSERT ON galley_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION galley_outbox_notify();
