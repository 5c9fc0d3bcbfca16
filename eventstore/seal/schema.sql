-- keys.db, version 2: the keys that open the sealed parts of the log.

-- What the file knows about itself and its ledger. changes and destroyed only
-- grow; the log's sealed head names them, so a start notices an older copy.
CREATE TABLE meta (
	id             INTEGER PRIMARY KEY CHECK (id = 1),
	ledger         TEXT    NOT NULL,           -- id of the ledger; '' until an older file is bound to one
	changes        INTEGER NOT NULL DEFAULT 0, -- of secrets
	secrets        BLOB    NOT NULL DEFAULT x'', -- MAC over changes and the table secrets
	destroyed      INTEGER NOT NULL DEFAULT 0, -- keys
	erased_through INTEGER NOT NULL DEFAULT 0, -- position up to which every erasure in the log is carried out
	erased_mac     BLOB    NOT NULL DEFAULT x''
) STRICT;

-- The master keys that wrap the rows below: check_value is an empty message
-- sealed under the key. There are two rows only while the master key is changed.
CREATE TABLE epochs (
	epoch       INTEGER PRIMARY KEY,
	check_value BLOB    NOT NULL
) STRICT;

-- One data key per account, wrapped by the master key of that epoch. A row with
-- empty wrapped bytes is a fence: the key was destroyed, and its slot is never
-- assigned again.
CREATE TABLE keys (
	slot    INTEGER PRIMARY KEY,
	epoch   INTEGER NOT NULL,
	wrapped BLOB    NOT NULL
) STRICT;

CREATE TRIGGER keys_stay BEFORE DELETE ON keys
BEGIN
	SELECT RAISE(ABORT, 'the row of a key is never deleted');
END;

CREATE TRIGGER keys_fence BEFORE UPDATE ON keys WHEN old.wrapped = x''
BEGIN
	SELECT RAISE(ABORT, 'a destroyed key does not come back');
END;

-- Secrets by name, wrapped like the keys.
CREATE TABLE secrets (
	name    TEXT    PRIMARY KEY,
	epoch   INTEGER NOT NULL,
	wrapped BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

-- Credentials of accounts, sealed under the account's data key in that slot.
CREATE TABLE credentials (
	slot   INTEGER NOT NULL,
	kind   TEXT    NOT NULL,
	sealed BLOB    NOT NULL,
	PRIMARY KEY (slot, kind)
) STRICT, WITHOUT ROWID;
