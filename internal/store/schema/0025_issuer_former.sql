-- +goose Up
-- readers from: 12

-- Certificates that an issuer had before it was renewed with its key. What it issued may name one of them, hosts may present one
-- still, and where the issuer above is not here, no inventory has it.
CREATE TABLE issuer_former (
    issuer TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    certificate BYTEA NOT NULL,
    not_after BIGINT NOT NULL,
    replaced_at BIGINT NOT NULL,
    PRIMARY KEY (issuer, fingerprint)
);
