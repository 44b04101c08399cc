-- +goose Up

-- A pool's root and issuer are rows of issuer that name the pool. state is pending until its root has signed.
CREATE TABLE pool (
    name         TEXT   NOT NULL PRIMARY KEY,
    organization TEXT   NOT NULL,
    created_at   BIGINT NOT NULL
);

-- +goose Down
DROP TABLE pool;
