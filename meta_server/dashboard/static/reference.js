// The REST interface, from its own description; nothing is loaded from elsewhere and no validator is asked.
SwaggerUIBundle({
  url: "/openapi.json",
  domNode: document.getElementById("reference"),
  validatorUrl: null,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
});
