-- +goose Up

-- The certificates by which a key is an identity: the newest, and the one before it, which its owner may still hold when the
-- answer with the newest was lost. Hexadecimal; empty in rows older than this. not_after is the newest's end.
ALTER TABLE access_identity ADD COLUMN serial TEXT NOT NULL DEFAULT '';
ALTER TABLE access_identity ADD COLUMN previous TEXT NOT NULL DEFAULT '';
ALTER TABLE access_identity ADD COLUMN not_after BIGINT NOT NULL DEFAULT 0;
