-- +goose Up
-- readers from: 12

-- Proofs that hosts refuse a revoked certificate. certificate is its ID in the inventory, issuer the ID of its issuer, and
-- fingerprint the SHA-256 of that one's certificate; algorithm is that of its key. controls is 1 where hosts may have a good
-- certificate to hold a refusal against.
CREATE TABLE proof (
    id TEXT NOT NULL PRIMARY KEY,
    certificate BIGINT NOT NULL,
    issuer TEXT NOT NULL,
    issuer_name TEXT NOT NULL,
    issuer_pool TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    serial TEXT NOT NULL,
    subject TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    held BIGINT NOT NULL,
    controls BIGINT NOT NULL,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    ends BIGINT NOT NULL
);

CREATE INDEX proof_by_certificate ON proof (certificate, id);

CREATE INDEX proof_by_end ON proof (ends);

-- The hosts of a proof. twin and control are the serial numbers of what was issued to the host for it, empty before, and the
-- others the SHA-256 of their keys. no_twin says why the host may have no twin, and is empty where it may. trials is JSON: what was
-- seen of each placement. reported_at is 0 until the agent has said anything of it.
CREATE TABLE proof_host (
    proof TEXT NOT NULL,
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    no_twin TEXT NOT NULL,
    twin TEXT NOT NULL,
    twin_key BYTEA NOT NULL,
    control TEXT NOT NULL,
    control_key BYTEA NOT NULL,
    trials TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (proof, host)
);

CREATE INDEX proof_host_by_host ON proof_host (host, proof);
