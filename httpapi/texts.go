package httpapi

// memberTexts describes the members of the OpenAPI document's schemas. They
// are kept here and not in tags because most of the types are the domain's,
// which knows nothing of OpenAPI. A test fails on a member without a text.
var memberTexts = map[string]map[string]string{}
