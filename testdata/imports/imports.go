// Package imports holds the people that the demonstration imports, so that an
// installed program has them too. See README.md for where they come from.
package imports

import _ "embed"

// People is a JSON list of 208 invented people.
//
//go:embed people-208.json
var People []byte

// PeopleMapping is the mapping that brings them into a ledger.
//
//go:embed people-208.yaml
var PeopleMapping []byte
