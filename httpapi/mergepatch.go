package httpapi

import "github.com/go-json-experiment/json"

// decodeMerged applies an RFC 7396 merge patch to the object before and decodes
// the result into the zero *into, or reports everything that is wrong with its
// shape. A member that B does not have is unknown.
func decodeMerged[B any](before B, patch []byte, into *B) error {
	document, err := json.Marshal(before)
	if err != nil {
		return err
	}
	var target, change any
	if err := json.Unmarshal(document, &target); err != nil {
		return err
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return newProblem(codeMalformedJSON, "The body is not JSON.")
	}
	merged, err := json.Marshal(mergePatch(target, change), json.Deterministic(true))
	if err != nil {
		return err
	}
	return decode(merged, into)
}

// mergePatch implements MergePatch of RFC 7396.
func mergePatch(target, patch any) any {
	change, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	members, ok := target.(map[string]any)
	if !ok {
		members = map[string]any{}
	}
	for name, value := range change {
		if value == nil {
			delete(members, name)
		} else {
			members[name] = mergePatch(members[name], value)
		}
	}
	return members
}
