-- keys.db, version 1: the keys that open the sealed parts of the log.

-- Identifies the file's master key: check_value is an empty message sealed under it.
CREATE TABLE meta (
	id          INTEGER PRIMARY KEY CHECK (id = 1),
	epoch       INTEGER NOT NULL,
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
