package httpapi

import _ "embed"

// openAPI is the description of the API, which is written by hand: the source of what is promised.
//
//go:embed openapi.json
var openAPI []byte
