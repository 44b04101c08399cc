-- +goose Up
-- readers from: 12

-- The nodes of the authority. state is waiting, active, leaving or gone; subsystems is a sorted, comma-separated list. fingerprint
-- is the SHA-256 that an administrator compares, over all that the node asked for. request is what the node asked to join with, and
-- answer what it was given, both JSON without secrets. report is what the node says of itself, JSON. seen_at is 0 before it first ran.
CREATE TABLE node (
    name TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    subsystems TEXT NOT NULL,
    address TEXT NOT NULL,
    public_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    tls_spki BYTEA NOT NULL,
    principal TEXT NOT NULL,
    database_role TEXT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL,
    report TEXT NOT NULL,
    joined_by TEXT NOT NULL,
    approved_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    approved_at BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    gone_at BIGINT NOT NULL
);

-- Invitations of nodes, by the SHA-256 of their secret. used_by is the node that used it, empty before. refused counts who came with
-- the secret later, and another key.
CREATE TABLE node_invitation (
    id TEXT NOT NULL PRIMARY KEY,
    hash BYTEA NOT NULL UNIQUE,
    subsystems TEXT NOT NULL,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_by TEXT NOT NULL,
    used_at BIGINT NOT NULL,
    refused BIGINT NOT NULL
);

-- Who gets keys, as a whole and signed with the audit key: a row of key_recipient that no list vouches for gets none, and a list
-- that is older than one that a node has seen is refused there.
CREATE TABLE recipient_list (
    version BIGINT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL,
    signature BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- pinned is the only node that may take the lease, empty for whoever comes first.
ALTER TABLE leases ADD COLUMN pinned TEXT NOT NULL DEFAULT '';
