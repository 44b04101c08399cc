-- +goose Up
-- readers from: 12

-- What the hosts of a pool trust has versions, so that a change of trust can reach them in waves. version is what hosts have
-- that are at no other one (host.trust); newest is the greatest number given. rollout is the one that works on the pool, or empty.
-- change grows with whatever of a pool's trust changes, pinned certificates and CRLs included.
CREATE TABLE trust_pool (
    pool TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    newest BIGINT NOT NULL,
    rollout TEXT NOT NULL,
    change BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);

-- Trust anchors, issuers below them, and certificates that are pinned by hand. kind is anchor, issuer or pinned. issuer is the
-- ID of the issuer that it is the certificate of, empty where it is none of ours. An entry is in the versions from
-- from_version up to, and not with, to_version; 0 there is no end. One whose certificate has ended is in none since pruned_at.
CREATE TABLE trust_entry (
    id TEXT NOT NULL PRIMARY KEY,
    pool TEXT NOT NULL,
    purpose TEXT NOT NULL,
    kind TEXT NOT NULL,
    issuer TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    certificate BYTEA NOT NULL,
    not_after BIGINT NOT NULL,
    from_version BIGINT NOT NULL,
    to_version BIGINT NOT NULL,
    pruned_at BIGINT NOT NULL,
    comment TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX trust_entry_by_pool ON trust_entry (pool, purpose);

CREATE INDEX trust_entry_by_fingerprint ON trust_entry (fingerprint);

CREATE INDEX trust_entry_by_end ON trust_entry (not_after) WHERE pruned_at = 0;

-- CRLs of trust anchors that are none of ours.
CREATE TABLE trust_crl (
    entry TEXT NOT NULL PRIMARY KEY,
    number TEXT NOT NULL,
    next_update BIGINT NOT NULL,
    der BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- Certificates of placements whose peers pin them: announced before they are placed, released when all who pin them hold them.
-- state is announced, released or placed.
CREATE TABLE trust_pinned (
    host TEXT NOT NULL,
    placement TEXT NOT NULL,
    serial TEXT NOT NULL,
    pool TEXT NOT NULL,
    purpose TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    certificate BYTEA NOT NULL,
    not_after BIGINT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (host, placement, serial)
);

CREATE INDEX trust_pinned_by_pool ON trust_pinned (pool, purpose);

CREATE INDEX trust_pinned_by_end ON trust_pinned (not_after);

CREATE INDEX trust_pinned_announced ON trust_pinned (pool) WHERE state = 'announced';

-- labels is a JSON object. trust is the version of the pool's trust that the host shall have, 0 for the pool's own; issuer the
-- name of the issuer under which it shall be, empty for the pool's default. identity_after asks for a new identity while its
-- generation is not above it. absent says why nobody who pins waits for the host, empty where all do; its next report ends it.
ALTER TABLE host ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE host ADD COLUMN trust BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN identity_after BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host ADD COLUMN absent TEXT NOT NULL DEFAULT '';

-- reissue is the number under which its certificates shall have been asked for, at least. The rest is observed: trust is the
-- version that is placed, 0 where it is none in full; issuer the fingerprint of the issuer of what is placed; reissued the number
-- under which that was asked for; crl_ends when the first of the CRLs placed there ends. held is the fingerprint of the issuer
-- under which its certificates stay while a rollout is at work and its host is told of none, empty where they follow the pool.
ALTER TABLE host_placement ADD COLUMN reissue BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host_placement ADD COLUMN trust BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host_placement ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
ALTER TABLE host_placement ADD COLUMN serial TEXT NOT NULL DEFAULT '';
ALTER TABLE host_placement ADD COLUMN reissued BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host_placement ADD COLUMN crl_ends BIGINT NOT NULL DEFAULT 0;
ALTER TABLE host_placement ADD COLUMN held TEXT NOT NULL DEFAULT '';

CREATE INDEX host_placement_by_issuer ON host_placement (issuer) WHERE issuer <> '';

CREATE INDEX host_placement_by_crl ON host_placement (crl_ends) WHERE crl_ends > 0;
