{{/* Name of every object. */}}
{{- define "multimodal-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "multimodal-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "multimodal-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What finds a component's pods: a list of the root and the component. */}}
{{- define "multimodal-operator.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object: a list of the root and the component. */}}
{{- define "multimodal-operator.labels" -}}
{{- $root := index . 0 -}}
{{ include "multimodal-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Reference of one of the three images: a list of the root and its name. */}}
{{- define "multimodal-operator.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $images := $root.Values.images -}}
{{- $path := ternary (printf "%s/" (trimSuffix "/" $images.registry)) "" (ne $images.registry "") -}}
{{- $tag := default $root.Chart.AppVersion $images.tag -}}
{{- default (printf "%smultimodal-%s:%s" $path $name $tag) (index $images $name) -}}
{{- end -}}

{{/* What a container of this chart may do: as little as the restricted Pod Security Standard wants. */}}
{{- define "multimodal-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{- define "multimodal-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Exactly what the operator uses: operator/multimodal_operator/kinds.py, and a test compares the two. */}}
{{- define "multimodal-operator.rules" -}}
- apiGroups: [multimodal.dev]
  resources: [multimodaldeployments]
  verbs: [list, watch, patch]
- apiGroups: [multimodal.dev]
  resources: [multimodaldeployments/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims, serviceaccounts, services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]
{{- end -}}
