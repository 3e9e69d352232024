{{- /* Everything of a release. */}}
{{- define "redis.release" -}}
app.kubernetes.io/name: redis-cluster
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Its nodes, and not the pod that creates the cluster. */}}
{{- define "redis.nodes" -}}
{{ include "redis.release" . }}
app.kubernetes.io/component: node
{{- end }}

{{- define "redis.labels" -}}
{{ include "redis.release" . }}
app.kubernetes.io/part-of: checkout
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The names of all nodes, as everybody who looks them up knows them. */}}
{{- define "redis.peers" -}}
{{- $release := .Release.Name -}}
{{- $peers := list -}}
{{- range until (int .Values.nodes) -}}
{{- $peers = append $peers (printf "%s-%d.%s" $release . $release) -}}
{{- end -}}
{{- join " " $peers -}}
{{- end }}

{{- define "redis.environment" -}}
- {name: PEERS, value: {{ include "redis.peers" . | quote }}}
- name: REDISCLI_AUTH
  valueFrom: {secretKeyRef: {name: {{ .Release.Name }}, key: password}}
{{- end }}

{{- define "redis.own-environment" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: SELF, value: $(POD_NAME).{{ .Release.Name }}}
- name: SELF_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}

{{- define "redis.pod-security" -}}
runAsNonRoot: true
runAsUser: 999
runAsGroup: 999
fsGroup: 999
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "redis.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
